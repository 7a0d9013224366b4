"Every panel that a card names, on small models of three architectures and live on the default one."
import time

import pytest

import tokenscope
from architectures import tiny, tiny_reader
from tokenscope.app.cards import cards, find_card, panel
from tokenscope.core.scope import Scope, load
from tokenscope.show.explore import ExplorePanel
from tokenscope.show.twin import shown
from tokenscope.text.names import BadArgument

WITH_PANEL = [card for card in cards() if card["panel"]]
slug = lambda card: card["slug"]


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def reader(request):
    return tiny_reader(request.param)


@pytest.mark.parametrize("card", WITH_PANEL, ids=slug)
def test_every_control_turns_and_no_hook_stays(card, reader):
    made = panel(f"{card['family']}/{card['slug']}", reader)
    assert isinstance(made, ExplorePanel)
    opening = {name: control.values[control.start] for name, control in made.controls.items()}
    first = shown(made.fn(**opening))
    assert len(first) > 100
    looks = {first}
    for name, control in made.controls.items():
        for value in [v for v in control.values if v != opening[name]][:1]:
            looks.add(shown(made.fn(**{**opening, name: value})))
    assert len(looks) > 1, "nothing happens"
    assert not hooks_on(reader.model)


@pytest.mark.parametrize("card", WITH_PANEL, ids=slug)
def test_a_control_stands_among_the_choices_and_words_can_be_typed(card, reader):
    made = panel(card["slug"], reader)
    assert any(control.kind == "text" for control in made.controls.values())
    words = " ".join(str(v) for control in made.controls.values() for v in control.values)
    assert "random" in words or "shuffled" in words


@pytest.mark.parametrize("card", WITH_PANEL, ids=slug)
def test_a_text_typed_live_answers_soon(card):
    made = panel(card["slug"], load())
    values = {name: control.values[control.start] for name, control in made.controls.items()}
    made.fn(**values)  # what is made once, such as a bank
    box = next(name for name, control in made.controls.items() if control.kind == "text")
    begun = time.process_time()
    shown(made.fn(**{**values, box: " Wednesday"}))
    assert time.process_time() - begun < 2


def test_what_is_no_panel():
    with pytest.raises(BadArgument, match="No panel: grains has none; these have one: .*zerotuning"):
        tokenscope.panel("grains")
    with pytest.raises(BadArgument, match="No such technique: 'magic'"):
        tokenscope.panel("magic")
    for card in WITH_PANEL:
        with pytest.raises(BadArgument, match=f"No tokenizer for a panel: {card['panel']}"):
            tokenscope.panel(card["slug"], Scope(tiny("llama")))
    assert find_card("steering/zerotuning") == find_card("zerotuning")
