"The structure audit on guards made by hand, on bad input, and on four architectures."
import pytest
import torch

from architectures import VOCAB, tiny
from tokenscope import load
from tokenscope.change.answers import option_margins
from tokenscope.text.containers import STRUCTURES, Request, canonicalise, keyorder, parse, render, small_tasks
from tokenscope.measure.intervals import holm
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.steering.struct_transform import (CONTROLS, Audit, ScopeGuard, agreement, auc, audit, benign_requests, guard_strip, random_container_direction, reworded,
                                                  task_margins, trials, undo_container, word_guard, written)

EVERY = benign_requests()
SOME = trials(EVERY[1::16])
FORMS = [*STRUCTURES, *CONTROLS]
says = lambda chat: chat[1]["content"]
length = lambda chats: torch.tensor([float(len(says(c))) for c in chats])
IDS = dict(structured=[[5, 6, 7, 8], [9, 10, 11]], plain=[[40, 41, 42, 43], [44, 45, 46]])


def test_the_list_is_fixed_and_balanced():
    assert len(EVERY) == 160 == len({(r.question, *r.fields.values()) for r in EVERY})
    both = trials(EVERY)
    assert len(both) == 320 and sum(t.off_topic for t in both) == 160
    assert all((t.topic != t.request.task) == t.off_topic for t in both)
    for topic in {r.task for r in EVERY}:  # each topic is set as often for its own requests as for others
        assert sum(t.topic == topic and not t.off_topic for t in both) == 40 and 35 <= sum(t.topic == topic and t.off_topic for t in both) <= 45


def test_forms_keep_what_is_asked():
    for r in EVERY[::7]:
        assert all(parse(written(r, s), s) == Request(r.fields, r.question) for s in STRUCTURES)
        assert len({written(r, f) for f in FORMS}) == len(FORMS)
        assert reworded(r).fields == r.fields and reworded(r).question != r.question != reworded(r, 2).question
        assert all(written(r, f).endswith(r.question) for f in ("plain, as long as SQL", "empty JSON, then plain"))
    own = Request({"x": "y"}, "A question of one's own?")
    assert reworded(own) == own
    with pytest.raises(ScopeError, match="Unknown container"):
        written(own, "toml")


def test_auc_by_hand_and_under_increasing_maps():
    assert auc(torch.tensor([0.9, 0.4, 0.6, 0.1]), [0, 0, 1, 1]) == 0.25
    assert auc(torch.tensor([1.0, 1, 1, 1]), [0, 1, 0, 1]) == 0.5 and auc(torch.tensor([[1.0, 2], [2, 1]]), [0, 1]).tolist() == [1, 0]
    scores, positive = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    assert auc(scores, positive) == auc(scores.double().exp().float(), positive) == auc(scores * 3 - 7, positive) == pytest.approx(1 - auc(-scores, positive).item())
    with pytest.raises(ScopeError, match="both kinds"):
        auc(scores, torch.ones(40))


def test_plain_is_the_zero_and_a_constant_guard_knows_nothing():
    table = audit(length, SOME).table(n=20)
    assert list(table.index) == FORMS and (table.loc["plain", ["change", "shift", "flips", "low", "high"]] == 0).all()
    assert table.loc["sql_select", "shift"] > 1 and table.loc["sql_select", "false_declines"] == 1
    constant = audit(lambda chats: torch.zeros(len(chats)), SOME).table(n=20)
    assert (constant.auc == 0.5).all() and (constant.flips == 0).all() and (constant.false_declines == 0).all()


def test_behind_canonicalise_nothing_moves():
    behind = audit(lambda chats: length([[c[0], {"content": canonicalise(says(c))}] for c in chats]), SOME, STRUCTURES)
    table = behind.table(solved={s: torch.ones(3) for s in STRUCTURES}, n=20)
    assert (table[["change", "shift", "flips", "task_drop", "gap"]] == 0).all().all()
    assert all(torch.equal(behind.scores["plain"], behind.scores[s]) for s in STRUCTURES)


def test_the_gap_is_the_guards_loss_less_the_tasks():
    scores = {"plain": torch.tensor([0.0, 1, 0, 1]), "json": torch.tensor([0.0, 1, 1, 0])}
    table = Audit(scores, SOME[:4]).table(solved={"plain": torch.tensor([1.0, 1, 1, 1]), "json": torch.tensor([1.0, 1, 1, -1])}, n=20)
    assert table.loc["json", "auc"] == 0.5 and table.loc["json", "task_drop"] == 0.25 and table.loc["json", "gap"] == 0.25
    assert "gap" not in Audit(scores, SOME[:4]).table(n=2)


def test_a_guard_of_values_does_not_see_the_order_of_fields():
    r = Request({"first": "nine", "second": "four"}, "Which is larger?", "sport")
    words = word_guard(SOME)
    a, b = ([{"content": "Only sport."}, {"content": t}] for t in (render(r, "xml"), keyorder(r, "xml")))
    assert words([a]) == words([b]) and says(a) != says(b)


def test_words_alone_decide_nothing_and_pairs_everything():
    fit, test = trials(EVERY[::2]), trials(EVERY[1::2])
    words, pairs = (audit(word_guard(fit, pairs), test, ["json"]).table(n=20).auc for pairs in (False, True))
    assert (words < 0.6).all() and (pairs > 0.9).all()
    assert word_guard(fit)([[{"content": "unknown"}, {"content": ""}]]).isfinite().all()


@pytest.mark.parametrize("guard", [lambda chats: torch.zeros(1), lambda chats: torch.full((len(chats),), float("nan")), lambda chats: torch.zeros(len(chats), 2)])
def test_guards_that_give_no_scores(guard):
    with pytest.raises(ScopeError, match="Not a score"):
        audit(guard, SOME)


def test_agreement():
    a, b = torch.tensor([1.0, -1, 1, -1]), torch.tensor([2.0, -2, -2, 2])
    assert agreement(a, b) == ["decline", "answer", "review", "review"] and set(agreement(a, a)) == {"decline", "answer"}
    assert agreement(a, b, 5) == ["answer"] * 4


def test_holm():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    found = holm(p)
    assert list(found) == list(p) and found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    for wrong in ({"a": -0.1}, {"a": 2}, {"a": float("nan")}):
        with pytest.raises(ScopeError, match="Not a p-value"):
            holm(wrong)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_the_edit_and_its_control(family):
    scope = Scope(tiny(family))
    made, control = (f(scope, **IDS, layers=[0, 2], strength=2.0) for f in (undo_container, random_container_direction))
    assert [e.layers for e in made] == [0, 2]
    for a, b in zip(made, control):
        assert a.add.norm() == pytest.approx(b.add.norm().item(), rel=1e-4) and not torch.allclose(a.add, b.add)
    assert undo_container(scope, **IDS, layers=1, strength=-2.0)[0].add.allclose(-undo_container(scope, **IDS, layers=1, strength=2.0)[0].add)
    same = undo_container(scope, structured=IDS["plain"], plain=IDS["plain"], layers=1)
    assert not same[0].add.any()


@pytest.mark.parametrize("wrong", [dict(strength=float("nan")), dict(strength=1e38), dict(layers=7), dict(structured=[], plain=[]), dict(structured=[[5, 6]]), dict(structured="toml", plain=None)])
def test_edits_that_cannot_be_meant(wrong):
    with pytest.raises((ScopeError, TypeError)):
        undo_container(Scope(tiny("llama")), **(wrong if "structured" in wrong else {**IDS, **wrong}))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def reader(request):
    default = load()
    return Scope(tiny(request.param, vocab_size=default.vocab_size, max_position_embeddings=256), default.tokenizer)


def test_same_tokens_same_score(reader):
    guard = ScopeGuard.fit(reader, SOME, layer=1)
    chats = [t.chat(written(t.request, f)) for t in SOME[:4] for f in ("plain", "json")]
    found = []
    for reader.tokenizer.padding_side in ("left", "right"):
        found.append(guard(chats))
    alone = torch.cat([guard([c]) for c in chats])
    assert torch.allclose(found[0], found[1], atol=1e-4) and torch.allclose(found[0], alone, atol=1e-4)
    strip = guard_strip(guard, EVERY[13], "json", topic="sport")
    assert abs(strip.values[-1] - (guard([[{"role": "system", "content": f"You only answer questions about {t}."}, {"role": "user", "content": written(EVERY[13], "json")}] for t in ("sport", "cooking")]) @ torch.tensor([1.0, -1.0])).item()) < 1e-3
    with pytest.raises(ScopeError, match="Not another topic"):
        guard_strip(guard, EVERY[13], topic="cooking")


def test_options_one_by_one_and_together(reader):
    tasks = small_tasks()[::9]
    together = task_margins(reader, tasks, "xml")
    assert torch.allclose(together, torch.cat([task_margins(reader, [r], "xml") for r in tasks]), atol=1e-4)
    swapped = option_margins(reader, ["One and one is"] * 2, [" two", " three"], [[" three"], [" two"]])
    assert torch.allclose(swapped[0], -swapped[1], atol=1e-5)
    with pytest.raises(ScopeError, match="No wrong answer"):
        option_margins(reader, ["One and one is"], [" two"], [[]])


def test_a_guard_needs_both_kinds_of_trials(reader):
    for few in ([], SOME[:1], SOME[::2]):
        with pytest.raises(ScopeError, match="A guard needs"):
            ScopeGuard.fit(reader, few, layer=1)
