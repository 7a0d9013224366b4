"What every technique of a family must do, read from the cards, on tiny models of four architectures."
import importlib

import pytest
import torch

from architectures import VOCAB, tiny
from tokenscope.core.edit import Edit
from tokenscope.app.gallery import cards
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope, load

IDS = torch.randint(3, VOCAB - 1, (2, 9), generator=torch.Generator().manual_seed(2))
STEERERS = [c for c in cards() if c["family"] == "steering"]
LENSES = [c for c in cards() if c["family"] == "lenses" and c["returns"] in ("Reading", "TokenScores")]  # others have tests of their own
OTHERS = [c for c in cards() if c not in STEERERS + LENSES]
TEXT = "The cat sat on the mat, and nobody <xmp>saw it."


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def scope(request):
    return Scope(tiny(request.param))


def parts(card):
    module = importlib.import_module(f"tokenscope.{card['family']}.{card['slug']}")
    return getattr(module, card["front"]), getattr(module, card["control"])


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("card", STEERERS, ids=lambda c: c["slug"])
class TestSteering:
    def test_neutral_is_bit_equal(self, card, scope):
        plain = scope.model(IDS).logits
        with scope.edit(*parts(card)[0](scope, **card["neutral"])):
            assert torch.equal(scope.model(IDS).logits, plain)

    def test_example_and_control_change_something_and_compose_with_nothing(self, card, scope):
        front, control = parts(card)
        plain = scope.model(IDS).logits
        for make in (front, control):
            edits = make(scope, **card["example"])
            assert all(hasattr(e, "site") for e in edits)
            with scope.edit(*edits):
                moved = scope.model(IDS).logits
            with scope.edit(*edits, Edit("resid_post", add=0.0)), scope.edit(Edit("attn_scores", scale=1.0)):
                assert torch.equal(scope.model(IDS).logits, moved)
            assert moved.isfinite().all() and (moved - plain).abs().max() > 1e-6
        assert torch.equal(scope.model(IDS).logits, plain)

    def test_off_after_an_exception(self, card, scope):
        plain, hooks = scope.model(IDS).logits, hooks_on(scope.model)
        with pytest.raises(RuntimeError, match="on purpose"), scope.edit(*parts(card)[0](scope, **card["example"])):
            raise RuntimeError("on purpose")
        assert torch.equal(scope.model(IDS).logits, plain) and hooks_on(scope.model) == hooks

    def test_works_in_generate_with_and_without_cache(self, card, scope):
        rows = [IDS[0].tolist(), IDS[1, :4].tolist()]
        with scope.edit(*parts(card)[0](scope, **card["example"])):
            cached, whole = (scope.generate(rows, max_new_tokens=4, eos_token_id=None, use_cache=c) for c in (True, False))
            alone = [scope.generate(r, max_new_tokens=4, eos_token_id=None) for r in rows]
        assert cached == whole == alone

    def test_half_precision(self, card, scope):
        half = Scope(tiny("llama").to(torch.bfloat16))
        with half.edit(*parts(card)[0](half, **card["example"])):
            assert half.model(IDS).logits.isfinite().all()

    def test_wrong_layer_is_refused(self, card, scope):
        with pytest.raises(ScopeError), scope.edit(*parts(card)[0](scope, **{**card["example"], "layers": 99})):
            pass


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def reader(request):
    "A tiny model that takes the default model's tokens."
    default = load()
    return Scope(tiny(request.param, vocab_size=default.vocab_size), default.tokenizer)


@pytest.mark.parametrize("card", LENSES, ids=lambda c: c["slug"])
class TestLenses:
    def test_a_value_for_each_token_and_nothing_left_behind(self, card, reader):
        ids = torch.tensor([reader.tokenizer(TEXT)["input_ids"]])
        plain, hooks = reader.model(ids).logits, hooks_on(reader.model)
        front, control = parts(card)
        for make in (front, control):
            scores = make(reader, TEXT, **card["example"]).scores()
            assert scores.values.shape[-1] == ids.shape[1] and "".join(str(t) for t in scores.tokens) == TEXT
            assert "<xmp" not in scores._repr_html_()
            assert hooks_on(reader.model) == hooks and torch.equal(reader.model(ids).logits, plain)

    def test_the_control_says_something_else(self, card, reader):
        made, again, control = (make(reader, TEXT, **card["example"]).to_df() for make in (parts(card)[0], *parts(card)))
        assert made.equals(again) and not made.equals(control)

    def test_padding_side_does_not_matter(self, card, reader):
        found = []
        for reader.tokenizer.padding_side in ("left", "right"):
            found.append(parts(card)[0](reader, TEXT, **card["example"]).to_df())
        assert found[0].equals(found[1])

    def test_some_layers_and_positions_are_the_same_numbers(self, card, reader):
        whole, some = (parts(card)[0](reader, TEXT, **{**card["example"], **more}).scores().values for more in ({}, dict(layers=[1], positions=slice(2, 5))))
        assert some.shape == (1, 3) and abs(some[0] - whole[1, 2:5]).max() < 1e-5

    @pytest.mark.parametrize("text, more", [("", {}), (TEXT, {"layers": 99}), (TEXT, {"positions": 99}), ([TEXT, TEXT], {})], ids=["empty", "layer", "position", "two texts"])
    def test_bad_input_is_refused(self, card, reader, text, more):
        with pytest.raises(ScopeError):
            parts(card)[0](reader, text, **{**card["example"], **more})


@pytest.mark.parametrize("card", OTHERS, ids=lambda c: c["slug"])
def test_front_and_control_of_the_other_families(card):
    if card["family"] in ("lenses", "tokenizers"):
        front, control = parts(card)
        assert callable(front) and callable(control)
        pytest.skip(f"{card['slug']} returns {card['returns']}, so its own tests check it")
    pytest.skip(f"no generic test for {card['family']} yet")
