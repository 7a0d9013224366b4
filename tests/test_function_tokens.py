"Classes by frequency, the four transitions, the graph of tokens and features, its control by matched counts, and patching."
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import tiny_reader
from corpus_fixtures import small  # noqa: F401
from tokenscope.text.names import ScopeError
from tokenscope.measure.sae import SparseAutoencoder
from tokenscope.corpus.token_counts import TokenCounts, count_tokens, ngram_surprisal
from tokenscope.measure.units import mlp_switches, sae_switches
from tokenscope.lenses.function_tokens import GROUPS, TokenFeatureGraph, feature_graph, function_token_lens, function_tokens, patch_position, random_function_tokens, random_token_lens, transition_losses

TEXTS = ["The cat sat on the mat and every human being is born free and equal.", "The cat sat on the chair while the rendering of the thing was slow.", "A dog ran over the hill, and nobody saw it again today, not even the cat."]


@pytest.fixture(scope="module")
def switches(small):
    return mlp_switches(small, TEXTS, quantile=0.8, skip=1)


@pytest.fixture(scope="module")
def graph(small, switches):
    return feature_graph(small, TEXTS, switches, skip=1)


def by_hand(small, switches, text, skip):
    states = small.read(text, switches.site, layers=switches.layers)[switches.site][0]  # (layer, token, feature)
    return (states.abs() > switches.thresholds[:, None]).transpose(0, 1)[skip:]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(0, 40), st.integers(0, 9), min_size=1).filter(lambda c: sum(c.values())), st.floats(0, 1))
def test_the_function_tokens_are_the_shortest_prefix(counts, q):
    chosen, total = function_tokens(counts, q), sum(counts.values())
    held = [counts[t] for t in chosen]
    assert sum(held) >= q * total and (not held or sum(held[:-1]) < q * total)
    assert held == sorted(held, reverse=True) and all(counts[t] <= held[-1] for t in counts if t not in chosen) if held else q == 0
    assert function_tokens(counts, 0) == [] and set(function_tokens(counts, 1)) == {t for t in counts if counts[t]}


def test_hand_cases():
    assert function_tokens(dict(a=5, b=3, c=2), 0.4) == ["a"] and function_tokens(dict(a=5, b=3, c=2), 0.6) == ["a", "b"]


def test_counts_are_those_of_python(small):
    counts = count_tokens(small, TEXTS)
    rows = small.tokenizer(TEXTS)["input_ids"]
    flat = [i for r in rows for i in r]
    pairs = [(a, b) for r in rows for a, b in zip(r, r[1:])]
    assert all(counts.unigram[i] == flat.count(i) and counts.documents[i] == sum(i in r for r in rows) for i in set(flat))
    assert {divmod(p, small.vocab_size): n for p, n in zip(counts.pairs.tolist(), counts.pair_counts.tolist())} == {p: pairs.count(p) for p in pairs}


def test_the_control_fills_the_same_share(small):
    counts = count_tokens(small, TEXTS)
    for q in (0.2, 0.4, 0.8):
        dealt, total = random_function_tokens(counts, q), counts.unigram.sum()
        assert counts.unigram[dealt].sum() >= q * total > counts.unigram[dealt[:-1]].sum()
    assert random_function_tokens(counts) == random_function_tokens(counts) != random_function_tokens(counts, seed=1)


def test_ngrams_are_probabilities():
    one = TokenCounts(torch.tensor([3, 0, 1]), torch.tensor([1, 0, 1]), torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long), 2)
    two = TokenCounts(torch.tensor([3, 0, 1]), torch.tensor([1, 0, 1]), torch.tensor([0, 2]), torch.tensor([2, 1]), 1)  # a a a c: aa twice, ac once
    for counts in (one, two):
        for order in (1, 2):
            p = [ngram_surprisal(counts, torch.full((3,), a), torch.arange(3), order=order).neg().exp() for a in range(3)]
            assert all(math.isclose(x.sum().item(), 1, abs_tol=1e-12) for x in p)
    seen = ngram_surprisal(two, torch.tensor([0]), torch.tensor([0]), prior=1).neg().exp().item()
    assert math.isclose(seen, (2 + 3.1 / 4.3) / (3 + 1))


def test_transitions_add_up(graph, small):
    types = function_tokens(count_tokens(small, TEXTS))
    made = transition_losses(graph.table, types, count_tokens(small, TEXTS))
    rows = graph.table[graph.table.position > 1]  # the first kept token of a text has no predecessor
    assert tuple(made.index) == GROUPS and math.isclose(made.positions.sum(), 1) and math.isclose(made.loss.sum(), 1)
    assert math.isclose((made["mean"] * made.positions).sum(), rows.surprisal.mean(), rel_tol=1e-6)
    everything, nothing = (transition_losses(graph.table, t) for t in (range(small.vocab_size), ()))
    assert everything.positions["f→f"] == nothing.positions["c→c"] == 1 and everything["mean"].isna().sum() == 3


def test_transitions_do_not_cross_texts():
    table = pd.DataFrame(dict(text=[0, 0, 1, 1, 1], position=[1, 2, 3, 4, 6], id=[7, 8, 8, 7, 8], surprisal=[np.nan, 2.0, 9.0, 4.0, 9.0]))
    made = transition_losses(table, [7])
    assert made["mean"].to_dict() == pytest.approx({"f→f": np.nan, "f→c": 2.0, "c→f": 4.0, "c→c": np.nan}, nan_ok=True)


def test_each_unit_is_on_as_often_as_the_quantile_says(small):
    apart = TEXTS[1:]  # no common beginning, so no two values are the same
    graph = feature_graph(small, apart, mlp_switches(small, apart, quantile=0.8, skip=1), skip=1)
    n = len(graph.table)
    on = np.unpackbits(np.concatenate([b.numpy() for b in graph.blocks]), axis=-1)[..., :graph.n_features]
    assert (on.sum(0) == int(0.2 * n + 1e-9)).all() and (graph.n_on() == on.sum(-1)).all()


def test_edges_are_the_union_of_occurrences(small, graph, switches):
    on = torch.cat([by_hand(small, switches, t, 1) for t in TEXTS]).numpy()
    types, _ = graph.edges
    table = graph.degrees().set_index("id")
    for t in types[::5]:
        rows = (graph.table["id"] == t).to_numpy()
        union, worst = on[rows].any(0), on[rows].sum((0, 2))
        assert (table.loc[t, [f"layer {i}" for i in graph.layers]].to_numpy() == union.sum(-1)).all() and table.loc[t, "count"] == rows.sum()
        assert (union.sum(-1) <= on[rows].sum(-1).sum(0)).all() and worst.sum() >= union.sum()
    assert (graph.n_active == on.any(0).sum(-1)).all()


def test_coverage_grows_to_one(graph):
    types = graph.edges[0].tolist()
    curve = graph.coverage([99_999_999, *types])
    assert (curve[0] == 0).all() and (np.diff(curve, axis=0) >= 0).all() and (curve[-1] == 1).all()
    degree = graph.degrees().set_index("id").loc[types].filter(like="layer").to_numpy()
    assert (curve[1:] <= degree.cumsum(0) / graph.n_active + 1e-12).all()


def test_matched_draws(graph):
    types, n = graph.edges[0].tolist(), len(graph.table)
    whole = graph.matched_coverage(n_types=n, k=1, n_draws=2)
    assert (whole == 1).all()  # every position once
    few, many = (graph.matched_coverage(types, n_types=3, k=k, n_draws=50).mean(0) for k in (1, 2))
    assert (few <= many).all() and np.array_equal(graph.matched_coverage(types, n_types=3, k=2), graph.matched_coverage(types, n_types=3, k=2))
    only = [t for t in types if (graph.table["id"] == t).sum() == 2][:3]
    np.testing.assert_allclose(graph.matched_coverage(only, n_types=len(only), k=2, n_draws=1)[0], graph.coverage(only)[-1])


def test_draws_come_from_as_many_texts_as_possible():
    table = pd.DataFrame(dict(text=[0, 0, 0, 1, 2], position=[1, 2, 3, 1, 1], id=5))
    bits = torch.tensor([[[1 << i]] for i in range(5)], dtype=torch.uint8)
    graph = TokenFeatureGraph(table, [bits[:2], bits[2:2], bits[2:]], [0], 8)
    assert {float(x) for x in graph.matched_coverage([5], n_types=1, k=3)[:, 0]} == {0.6}
    for seed in range(5):
        rng = np.random.default_rng(seed)
        from tokenscope.lenses.function_tokens import _spread
        assert set(table["text"].iloc[_spread(graph, rng.permutation(5), 3)]) == {0, 1, 2}


def test_on_disk_resumed_and_in_memory_are_the_same(small, switches, graph, tmp_path):
    there = feature_graph(small, TEXTS, switches, tmp_path / "a", skip=1)
    again = feature_graph(small, TEXTS, switches, tmp_path / "a", skip=1)
    for one in (there, again):
        assert all(torch.equal(a, b) for a, b in zip([torch.cat(one.blocks)], graph.blocks)) and one.blocks[0].dtype == torch.uint8
        pd.testing.assert_frame_equal(one.table, graph.table)
    with pytest.raises(ScopeError, match="The folder holds another job"):
        feature_graph(small, TEXTS, switches.at([1], 3), tmp_path / "a", skip=1)


def test_features_of_an_autoencoder(small):
    g = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(torch.randn(32, 20, generator=g), torch.zeros(20), torch.nn.functional.normalize(torch.randn(20, 32, generator=g), dim=-1), torch.zeros(32), k=3, layer=1)
    made = feature_graph(small, TEXTS, sae_switches(sae), losses=False, skip=1)
    states = torch.cat([small.read(t, "resid_post", layers=1, positions=slice(1, None))["resid_post"][0, 0] for t in TEXTS])
    assert (made.n_on()[:, 0] == (sae.encode(states) > 0).sum(-1).numpy()).all() and "surprisal" not in made.table
    assert function_token_lens(small, TEXTS[0], switches=sae_switches(sae), counts=count_tokens(small, TEXTS)).counts.shape[0] == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_other_architectures(family):
    other = tiny_reader(family)
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in other.model.modules())
    switches = mlp_switches(other, TEXTS, quantile=0.9, skip=1)
    before, plain = hooks(), other.logits(TEXTS[0])
    made = feature_graph(other, TEXTS, switches, skip=1)
    assert switches.site == ("mlp_out" if family == "mixtral" else "mlp_post") and made.n_active.min() > 0
    moved = patch_position(other, TEXTS[:1], [TEXTS[0].replace("cat", "dog")], 1, -1)
    assert moved.isfinite().all() and hooks() == before and torch.equal(other.logits(TEXTS[0]), plain)


def test_patching(small):
    a, b = ["The cat sat on the mat"], ["The dog sat on the mat"]
    plain = small.logits(a, positions=-1)[:, 0]
    assert torch.equal(patch_position(small, a, a, 1, -2), plain) and torch.equal(patch_position(small, a, b, 1, 0), plain)
    torch.testing.assert_close(patch_position(small, a, b, 2, -1), small.logits(b, positions=-1)[:, 0], atol=1e-4, rtol=1e-4)
    both = patch_position(small, a + b, b + a, 1, -2)
    torch.testing.assert_close(both, torch.cat([patch_position(small, a, b, 1, -2), patch_position(small, b, a, 1, -2)]), atol=1e-4, rtol=1e-4)


def test_reading(small):
    counts = count_tokens(small, TEXTS)
    read = lambda make, **more: make(small, TEXTS[0], counts=counts, switches=mlp_switches(small, TEXTS, quantile=0.8, skip=1), **more)
    made, dealt = read(function_token_lens), read(random_token_lens)
    np.testing.assert_allclose(made.surprisal, small.surprisal(TEXTS[0]).values, rtol=1e-4)
    assert np.array_equal(made.counts, dealt.counts) and not np.array_equal(made.function, dealt.function)
    assert made.groups[0] == "" and all(g[0] == ("f" if f else "c") for g, f in zip(made.groups[1:], made.function))
    page = function_token_lens(small, 'x <img src="a" onerror=b> & the', counts=counts, switches=mlp_switches(small, TEXTS, quantile=0.8, skip=1))._repr_html_()
    assert "<img" not in page and "onerror=b>" not in page


@pytest.mark.parametrize("wrong, message", [
    (lambda s, w: function_tokens({1: 2}, 1.5), "q must lie"), (lambda s, w: count_tokens(s, []), "No tokens to count"), (lambda s, w: mlp_switches(s, ["a"]), "Too few tokens for the quantile"),
    (lambda s, w: mlp_switches(s, TEXTS, quantile=1.0), "Too few tokens for the quantile"), (lambda s, w: mlp_switches(s, TEXTS, layers=9), "9"), (lambda s, w: w.at([2], 3).at([0], 3), "No switches for layer 0"),
    (lambda s, w: feature_graph(s, ["a"], w), "Nothing for the graph"), (lambda s, w: feature_graph(s, [], w), "Nothing for the graph"),
    (lambda s, w: feature_graph(s, TEXTS, w).matched_coverage([5], k=20), "Too few occurrences to match"), (lambda s, w: feature_graph(s, TEXTS, w).matched_coverage(), "Too few occurrences to match"),
    (lambda s, w: feature_graph(s, TEXTS, w).matched_coverage(k=0), "k and n_types"), (lambda s, w: patch_position(s, ["a b"], ["a b c"], 1, -1), "Prompts and donors differ in length"),
    (lambda s, w: patch_position(s, ["a b"], ["a c"], 9, -1), "9"), (lambda s, w: function_token_lens(s, ["a", "b"], switches=w), "function_token_lens takes one text")])
def test_bad_input(small, switches, wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong(small, switches)


def test_values_that_are_not_numbers():
    broken = tiny_reader("llama")
    with torch.no_grad():
        broken.model.model.layers[1].mlp.up_proj.weight[0] = float("nan")
    with pytest.raises(ScopeError, match="The units are not finite"):
        mlp_switches(broken, TEXTS, quantile=0.8, skip=1)
