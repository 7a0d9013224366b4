"Separating counterfactuals, interchange, shares and the mixture: identities, four architectures, bad input."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import VOCAB, tiny
from tokenscope.learn.shipped import shipped
from tokenscope.learn.binding import QUESTIONS, binding_accuracy, binding_lesson, binding_task, candidate_logprobs
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope, load
from tokenscope.lenses.mixing_mechanisms import (ROLES, MixtureOfMechanisms, SeparatingPairs, fit_mixture, interchange, mixing_mechanisms, separating_pairs, share_bars, shuffled_mechanisms, similarity,
                                                 triple_means)

IDS = dict(names=list(range(5, 14)), objects=list(range(20, 29)), fact=["{a}", 40, "{b}", 41], question=[42, "{b}", 43])


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def scope(request):
    return Scope(tiny(request.param))


@pytest.fixture(scope="module")
def toy():
    return shipped("binding").scope


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 9), st.integers(1, 60), st.integers(0, 5), st.booleans())
def test_pairs_differ_as_they_should(n, samples, seed, ask_object):
    task = binding_task(Scope(tiny("llama")), **{**IDS, "question": [42, "{a}" if ask_object else "{b}", 43]})
    pairs = separating_pairs(task, n, samples, seed)
    assert pairs.original.shape == pairs.counterfactual.shape == (samples, 4 * n + 3)
    assert torch.equal(pairs.original[:, :4 * n].sort(1).values, pairs.counterfactual[:, :4 * n].sort(1).values)
    different = pairs.original != pairs.counterfactual
    assert (different[:, :4 * n].sum(1) == 4).all() and different[:, 4 * n:].int().tolist() == [[0, 1, 0]] * samples
    assert (pairs.facts.sort(1).values.diff(dim=1) > 0).all() and pairs.facts.min() >= 0 and pairs.facts.max() < n
    p, t, s, q = pairs.facts.unbind(1)
    row, key, answer = torch.arange(samples), 2 * (1 - task.side), 2 * task.side
    old, new = pairs.original[:, :4 * n].view(samples, n, 4), pairs.counterfactual[:, :4 * n].view(samples, n, 4)
    assert torch.equal(pairs.original[:, -2], old[row, q, key]) and torch.equal(pairs.counterfactual[:, -2], new[row, p, key])
    assert torch.equal(new[row, p, key], old[row, t, key])  # the word stands at t in the original
    assert torch.equal(new[row, p, answer], old[row, s, answer])  # the counterfactual answer stands at s


@pytest.mark.parametrize("absent, column", [("key", 1), ("answer", 2)])
def test_a_stranger_points_nowhere(scope, absent, column):
    pairs = separating_pairs(binding_task(scope, **IDS), 5, 30, absent=absent)
    assert (pairs.facts[:, column] == -1).all() and (pairs.facts[:, [c for c in range(4) if c != column]] >= 0).all()
    new = [[x for x in c if x not in o] for o, c in zip(pairs.original.tolist(), pairs.counterfactual.tolist())]
    assert all(len(x) == (2 if absent == "key" else 1) for x in new)  # a strange key is in the list and in the question


def test_every_choice_of_four_comes_equally_often(scope):
    facts = separating_pairs(binding_task(scope, **IDS), 4, 48).facts
    assert len(facts.unique(dim=0)) == 24 and (facts.unique(dim=0, return_counts=True)[1] == 2).all()


def test_interchange_identities(scope):
    pairs = separating_pairs(binding_task(scope, **IDS), 5, 7)
    plain, hooks = candidate_logprobs(scope, pairs.original, pairs.candidates), hooks_on(scope.model)
    same = SeparatingPairs(pairs.original, pairs.original, pairs.candidates, pairs.facts)
    assert torch.equal(interchange(scope, same, site="resid_pre"), plain.expand(3, -1, -1))
    last = interchange(scope, pairs, -1, "resid_post")[0]
    torch.testing.assert_close(last, candidate_logprobs(scope, pairs.counterfactual, pairs.candidates), atol=1e-5, rtol=0)
    torch.testing.assert_close(interchange(scope, pairs, 0)[0], plain, atol=1e-5, rtol=0)  # the last token is the same in both
    assert hooks_on(scope.model) == hooks and torch.equal(candidate_logprobs(scope, pairs.original, pairs.candidates), plain)


def test_batches_do_not_matter(scope):
    pairs = separating_pairs(binding_task(scope, **IDS), 5, 7)
    torch.testing.assert_close(interchange(scope, pairs, batch_tokens=1), interchange(scope, pairs), atol=1e-5, rtol=0)


def test_shares_sum_to_one_and_control_differs(scope):
    made, again, control = (f(scope, **IDS, n=5, samples=24) for f in (mixing_mechanisms, mixing_mechanisms, shuffled_mechanisms))
    table = made.to_df()
    assert torch.equal(made.logprobs, again.logprobs) and not torch.equal(made.logprobs, control.logprobs)
    assert ((table[[*ROLES, "other"]].sum(axis=1) - 1).abs() < 1e-6).all() and table.layer.tolist() == [0, 1, 2] and table.coverage.between(0, 1).all()
    assert len(made.to_df(by_position=True)) == 15 and made._repr_html_().count("role=img") == 3 and "positional" in repr(made)
    some = mixing_mechanisms(scope, **IDS, n=5, samples=24, layers=-1)
    assert some.layers == [2] and torch.equal(some.logprobs[0], made.logprobs[2])


def test_titles_are_escaped(scope):
    assert "<xmp" not in share_bars({"<xmp>": mixing_mechanisms(scope, **IDS, n=4, samples=2, layers=0)})


def test_half_precision():
    half = Scope(tiny("llama").to(torch.bfloat16))
    assert mixing_mechanisms(half, **IDS, n=5, samples=6).logprobs.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_similarity(seed, n):
    p, q = torch.rand(2, 4, n, generator=torch.Generator().manual_seed(seed)).pow(8).add(1e-9).unbind(0)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    s = similarity(p, q)
    assert ((s >= -1e-6) & (s <= 1 + 1e-6)).all() and torch.allclose(s, similarity(q, p), atol=1e-6) and torch.allclose(similarity(p, p), torch.ones(4), atol=1e-6)
    apart = torch.eye(n)[[0]], torch.eye(n)[[1]]
    assert similarity(*apart).abs() < 1e-6


def test_mixture_by_hand_and_in_the_limits():
    facts = torch.tensor([[1, 0, 2], [0, -1, -1]])
    model = MixtureOfMechanisms(3, ("bump",))
    for c0, wanted in ((1.0, [0.6065, 1, 0.6065]), (0.0, [0, 1, 0]), (1e6, [1, 1, 1])):
        model.c.data = torch.tensor([0.0, 0, c0])
        torch.testing.assert_close(model.logits(facts)[0], torch.tensor(wanted, dtype=torch.float32), atol=1e-4, rtol=0)
    full = MixtureOfMechanisms(3)
    full.w_lex.data, full.w_ref.data = torch.tensor([50.0, 0, 0]), torch.tensor([0, 0, 7.0])
    assert full(facts)[0].argmax() == 0 and full(facts)[0].max() > 0.99
    assert torch.allclose(full.logits(facts)[1], MixtureOfMechanisms(3, ("bump",)).logits(facts)[1])  # -1: neither word nor pointer
    assert torch.allclose(MixtureOfMechanisms(3, ())(facts), torch.full((2, 3), 1 / 3))


def test_planted_mixture_is_found_and_ablations_are_not_enough():
    planted, facts = MixtureOfMechanisms(6), torch.cartesian_prod(*[torch.arange(6)] * 3)
    planted.w_pos.data, planted.c.data = torch.tensor(3.0), torch.tensor([-4.0, 4.0, 0.4])
    planted.w_lex.data, planted.w_ref.data = torch.linspace(1, 4, 6), torch.linspace(2, 0, 6)
    target = planted(facts).detach()
    found = {parts: fit_mixture(facts, target, parts, epochs=500)[1]["test"] for parts in ((), ("bump",), ("bump", "lexical"), ("bump", "lexical", "reflexive"))}
    assert sorted(found.values()) == list(found.values()) and list(found.values())[-1] > 0.999 and found["bump",] < 0.97


def test_triples_are_averaged():
    facts = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [1, 0, 2, 3]])
    triples, means = triple_means(facts, torch.tensor([[1.0, 0], [0, 1], [1, 0]]))
    assert triples.tolist() == [[0, 1, 2], [1, 0, 2]] and means.tolist() == [[0.5, 0.5], [1, 0]]


def test_text_tasks_are_the_text(toy):
    default = load()
    task = binding_task(default, " The person who loves {b} is named")
    groups = task.sample(3, 2)
    ids = torch.cat([task.facts(groups), task.ask(groups, torch.tensor([0, 2]))], 1)
    for row in ids.tolist():
        assert default.tokenizer(default.tokenizer.decode(row))["input_ids"] == row
    row = toy.tokenizer("Ann loves pie . Bob loves jam . Who loves jam ?")["input_ids"]
    assert row[0] == toy.tokenizer.bos_token_id and str(toy.next_tokens([row], k=1).tokens[0]).strip() == "Bob"


def test_the_toy_binds_and_its_lessons_teach_answers_only(toy):
    tasks = [binding_task(toy, q) for q in QUESTIONS.values()]
    assert all(binding_accuracy(toy, t, n, samples=60).hits.sum() > 54 for t in tasks for n in (4, 8))
    ids, labels = binding_lesson(tasks, 700, 1000, sequences=3)
    assert torch.equal(ids[labels != -100], labels[labels != -100]) and (labels != -100).sum() == 24 and all(x in [*tasks[0].names, *tasks[0].objects] for x in labels[labels != -100])


@pytest.mark.parametrize("wrong, message", [
    (dict(n=3), "No separating pairs"), (dict(samples=0), "No separating pairs"), (dict(absent="word"), "No separating pairs"), (dict(n=10), "Not enough entities"), (dict(n=9, absent="key"), "Not enough entities"),
    (dict(layers=99), "99"), (dict(site="nowhere"), "nowhere"), (dict(fact=["{a}", 40]), "Holes do not fit"), (dict(question=[42]), "Holes do not fit"), (dict(question=["{a}", "{b}"]), "Holes do not fit"),
    (dict(answer="b"), "Nothing to answer"), (dict(answer="c"), "Nothing to answer"), (dict(names=[5, 5, 6, 7, 8, 9]), "An entity twice"), (dict(names=[VOCAB + 1, *range(5, 12)]), "outside the model's vocabulary"),
    (dict(fact=["{a}", *[40] * 14, "{b}", 41]), "too long")])
def test_bad_input(scope, wrong, message):
    with pytest.raises(ScopeError, match=message):
        mixing_mechanisms(scope, **{**IDS, "n": 5, "samples": 6, **wrong})


def test_bad_words_and_targets(toy):
    with pytest.raises(ScopeError, match="Not one token: 'Xylophone'"):
        binding_task(toy, names=["Ann", "Xylophone"])
    facts = torch.cartesian_prod(*[torch.arange(3)] * 3)
    for target in (torch.full((27, 3), float("nan")), torch.ones(27, 3)[:1]):
        with pytest.raises(ScopeError, match="Nothing to fit"):
            fit_mixture(facts[:len(target)], target)
