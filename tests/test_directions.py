"Directions and the moments they come from: identities, padding, files, and what cannot be meant."
import json
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from architectures import VOCAB, tiny
from tokenscope.change.directions import Directions, difference_of_means, load_directions, state_means
from tokenscope.change.direction_fits import Subspace, discriminant, lda_direction, logistic_weights, principal_directions, probe_direction
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.core.states import sample_states, state_batches, state_moments

SEED = torch.Generator().manual_seed(3)
ROWS = [torch.randint(3, VOCAB - 1, (n,), generator=SEED).tolist() for n in (2, 9, 4, 4, 17, 1, 6)]
OTHERS = [torch.randint(3, VOCAB - 1, (n,), generator=SEED).tolist() for n in (5, 12, 3, 8)]
REFUSED = (ScopeError, TypeError)


@pytest.fixture(scope="module")
def scope():
    return Scope(tiny("llama"))


@pytest.fixture(scope="module")
def d(scope):
    return difference_of_means(scope, ROWS, OTHERS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_means_are_over_tokens_and_do_not_see_the_batch(family):
    scope = Scope(tiny(family))
    each = torch.cat([scope.read(r)["resid_post"][0, :, 1:].transpose(0, 1) for r in ROWS if len(r) > 1])
    for budget in (1, 16, 2048):
        found = state_moments(scope, ROWS, batch_tokens=budget, second=True)
        torch.testing.assert_close(found.mean.float(), each.mean(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.norms.float(), each.norm(dim=-1).mean(0), rtol=1e-3, atol=1e-3)
        spread = torch.stack([torch.cov(each[:, i].T.double(), correction=0) for i in range(3)]) * len(each)
        torch.testing.assert_close(found.scatter, spread, rtol=2e-3, atol=2e-3 * spread.abs().max().item())
        assert found.n_tokens == len(each) == sum(len(r) - 1 for r in ROWS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_every_direction_has_its_shape_and_steers(family):
    scope = Scope(tiny(family))
    plain = scope.logits(ROWS[1])
    for made in (difference_of_means(scope, ROWS, OTHERS), probe_direction(scope, ROWS, OTHERS, n_tokens=20), lda_direction(scope, ROWS, OTHERS, ridge=0.1)):
        assert made.vectors.shape == (3, 32) and made.vectors.dtype == torch.float32 and made.vectors.isfinite().all()
        with scope.edit(made.edit(1, 2.0, "norm")):
            assert (scope.logits(ROWS[1]) - plain).abs().max() > 1e-4
    assert torch.equal(scope.logits(ROWS[1]), plain)


def test_a_generator_a_window_and_the_data_hash(scope):
    many = (ROWS[i % len(ROWS)] for i in range(600))
    found, again = state_moments(scope, many, layers=0), state_moments(scope, [ROWS[i % len(ROWS)] for i in range(600)], layers=[0, 0])
    assert found.n_tokens == again.n_tokens and found.meta == again.meta and again.layers == [0]
    assert found.meta["data"] != state_moments(scope, ROWS, layers=0).meta["data"]
    assert sum(len(n) for n, _, _ in state_batches(scope, ROWS * 100, layers=0)) == 700


def test_samples_do_not_see_the_batch(scope):
    one, two = (sample_states(scope, ROWS, n_tokens=15, seed=1, batch_tokens=b) for b in (8, 2048))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    assert len(sample_states(scope, ROWS, n_tokens=1000)) == sum(len(r) - 1 for r in ROWS)
    assert not torch.allclose(one, sample_states(scope, ROWS, n_tokens=15, seed=2))


def test_signs_sums_and_cosines(scope, d):
    a, b, c = (state_means(scope, r) for r in (ROWS, OTHERS, ROWS[:3]))
    assert torch.equal((a - b).vectors, -(b - a).vectors) and torch.equal((-(a - b)).vectors, (b - a).vectors)
    torch.testing.assert_close(((a - b) + (b - c)).vectors, (a - c).vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d.cosine(d), torch.ones(3))
    torch.testing.assert_close(d.cosine(-d), -torch.ones(3))
    torch.testing.assert_close(d.unit.lengths, torch.ones(3))
    r = d.random(4)
    torch.testing.assert_close(r.lengths, d.lengths)
    part = difference_of_means(scope, ROWS, OTHERS, layers=2)
    torch.testing.assert_close(part.random(4).at(2), r.at(2), rtol=1e-4, atol=1e-5)


def test_identical_sets_are_neutral_and_never_nan(scope):
    zero = difference_of_means(scope, ROWS, ROWS)
    assert zero.lengths.max() == 0 and zero.unit.vectors.isfinite().all() and zero.random(0).lengths.max() == 0 and (zero.cosine(zero) == 0).all()
    plain = scope.logits(ROWS[1])
    for made in (zero, zero.random(0), zero.as_long_as(zero), lda_direction(scope, ROWS, ROWS), probe_direction(scope, ROWS, ROWS)):
        for unit in ("diff", "norm", "absolute"):
            with scope.edit(made.edit(1, 3.0, unit)):
                assert torch.equal(scope.logits(ROWS[1]), plain)


@settings(max_examples=40, deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["diff", "norm", "absolute"]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_any_strength_is_finite_or_refused(strength, unit, dtype):
    d = Directions(torch.ones(1, 4), [0], torch.tensor([5.0]))
    try:
        add = d.edit(0, strength, unit, dtype=dtype).add
    except ScopeError:
        assert not math.isfinite(strength) or abs(strength) > 1e3
    else:
        assert add.isfinite().all() and add.to(dtype).isfinite().all() and add.square().isfinite().all()


def test_discriminant_by_hand_and_probe_on_separable_states():
    torch.testing.assert_close(discriminant(torch.tensor([3.0, 4.0]), 2 * torch.eye(2)), torch.tensor([0.6, 0.8]))
    assert discriminant(torch.zeros(2), torch.zeros(2, 2)).tolist() == [0, 0]
    x = torch.randn(200, 1, 6, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([4.0, 0, 0, 0, 0, 0])
    w = logistic_weights(x + shift, x - shift)[0]
    assert w.argmax() == 0 and w[0] > 3 * w[1:].abs().max()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_subspace_moves_nothing_outside(family):
    scope = Scope(tiny(family))
    space = principal_directions(scope, ROWS, k=3)
    torch.testing.assert_close(space.basis @ space.basis.mT, torch.eye(3).expand(3, 3, 3), rtol=1e-4, atol=1e-4)
    assert isinstance(space, Subspace) and (space.shares.diff(dim=-1) <= 0).all() and (space.shares.sum(-1) <= 1.0001).all()
    plain = scope.read(ROWS[1], layers=1)["resid_post"][0, 0, 1:]
    with scope.edit(space.edit(1, 2.0, "absolute")):
        moved = scope.read(ROWS[1], layers=1)["resid_post"][0, 0, 1:]
    torch.testing.assert_close(moved - space.project(1, moved), plain - space.project(1, plain), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((moved - plain).norm(dim=-1), torch.full((len(plain),), 2.0), rtol=1e-3, atol=1e-3)
    assert space.edit(1, 0.0).neutral and space.edit(1).fn(torch.zeros(1, 2, 32)).isfinite().all()
    with pytest.raises(ScopeError, match="no length of its own"):
        space.edit(1, 1.0, "diff")


def test_a_file_brings_back_what_was_saved(scope, d, tmp_path):
    again = load_directions(d.save(tmp_path / "d.safetensors"), scope)
    assert torch.equal(again.vectors, d.vectors) and torch.equal(again.norms, d.norms)
    assert (again.layers, again.site, again.n_tokens, again.name, again.meta) == (d.layers, d.site, d.n_tokens, d.name, d.meta)
    for other in (tiny("llama", hidden_size=48), tiny("llama", num_hidden_layers=2)):
        with pytest.raises(ScopeError, match="do not fit this model"):
            load_directions(tmp_path / "d.safetensors", Scope(other))


def test_a_file_that_is_none_of_ours(d, tmp_path):
    path = tmp_path / "x.safetensors"
    head = lambda **k: {"tokenscope_directions": json.dumps(dict(format=1, layers=[0], site="resid_post", n_tokens=1, technique="t", meta={}, version="0") | k)}
    good = dict(vectors=torch.ones(1, 4), norms=torch.ones(1))
    for tensors, metadata in ((good, None), (good, {"tokenscope_directions": "{"}), ({"vectors": torch.ones(1, 4)}, head()), (good, head(format=9)), (good, head(site="nowhere")),
                              (good, head(layers=[0, 1])), (good, head(layers="a")), (good, head(layers=[-1])), ({**good, "vectors": torch.full((1, 4), math.nan)}, head())):
        save_file(tensors, str(path), metadata=metadata)
        with pytest.raises(ScopeError, match="Not a file of directions|Damaged directions"):
            load_directions(path)
    path.write_bytes(b"no such thing")
    for wrong in (path, tmp_path / "missing.safetensors"):
        with pytest.raises(ScopeError, match="Not a file of directions"):
            load_directions(wrong)


@pytest.mark.parametrize("texts, match", [([], "set is empty|set of texts is empty"), ("a text", "one text was given"), ([[5]], "no text has a token"), ([[5, 6], []], "number 1"), (["text"], "No tokenizer")])
def test_sets_that_cannot_be_averaged(scope, texts, match):
    with pytest.raises(REFUSED, match=None if texts == "a text" else match):
        state_means(scope, texts)
    with pytest.raises(REFUSED):
        probe_direction(scope, texts, ROWS)


def test_places_that_cannot_be_meant(scope, d):
    for wrong in (dict(layers=9), dict(site="pattern"), dict(site="logits"), dict(site="q"), dict(site="nowhere"), dict(positions="second")):
        with pytest.raises(REFUSED):
            state_means(scope, ROWS, **wrong)
    for wrong in (lambda: d.at(3), lambda: d.edit(0, unit="sigma"), lambda: d - state_means(scope, ROWS, layers=0), lambda: d.cosine(state_means(scope, ROWS, site="mlp_out")),
                  lambda: principal_directions(scope, ROWS, k=99), lambda: lda_direction(scope, state_moments(scope, ROWS), state_moments(scope, ROWS))):
        with pytest.raises(ScopeError):
            wrong()
    assert torch.equal(d.at(-1), d.at(2)) and state_means(scope, ROWS, site="mlp_post").vectors.shape == (3, 48)


def test_positions_and_states_that_are_not_finite(scope):
    last = state_means(scope, ROWS[:2], positions="last").at(0)
    torch.testing.assert_close(last, torch.stack([scope.read(r, layers=0)["resid_post"][0, 0, -1] for r in ROWS[:2]]).mean(0), rtol=1e-3, atol=1e-4)
    broken = Scope(tiny("llama"))
    broken.structure.embedding.weight.data.fill_(math.nan)
    with pytest.raises(ScopeError, match="not finite"):
        state_means(broken, ROWS)
