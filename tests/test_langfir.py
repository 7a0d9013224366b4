"Language features on hand-made codes, tiny models, and bad input."
import pytest
import torch

from architectures import tiny
from tokenscope.core.edit import Edit
from tokenscope.change.moves import AddInProportion, ProjectOut, orthonormal_basis
from tokenscope.text.names import ScopeError
from tokenscope.measure.sae import default_sae
from tokenscope.measure.sae_texts import sae_from_texts
from tokenscope.core.scope import Scope
from tokenscope.steering.langfir import (THRESHOLDS, Firing, LanguageFeatures, ablation_matrix, find_language_features, firing, langfir, random_langfir,
                                         specific_features)

draw = torch.Generator().manual_seed(4)
ROWS = [torch.randint(3, 40, (n,), generator=draw).tolist() for n in (9, 5, 12, 7, 2)]
SMALL = dict(language=ROWS, sae="fit", tau=0.01, rho=1.1, n_random=8, length=6)
REFUSED = (ScopeError, TypeError)


@pytest.fixture(scope="module")
def scope():
    return Scope(tiny("llama"))


@pytest.fixture(scope="module")
def sae(scope):
    return sae_from_texts(scope, ROWS, layer=1, n_features=24, k=3, steps=30)


def firing_of(*texts):
    "Firing of codes written by hand: one (token, feature) list a text."
    z = [torch.tensor(t, dtype=torch.float) for t in texts]
    return Firing(torch.stack([(t > 0).sum(0).float() for t in z]), torch.stack([t.sum(0) for t in z]), torch.tensor([float(len(t)) for t in z]))


def test_rates_of_a_hand_made_matrix():
    f = firing_of([[0, 2], [1, 0], [0, 3]], [[0, 0]])
    torch.testing.assert_close(f.token_rate, torch.tensor([1 / 4, 2 / 4]))
    torch.testing.assert_close(f.sentence_rate, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(f.mean_active, torch.tensor([1.0, 2.5]))
    assert f.some([0]).sentence_rate.tolist() == [1, 1] and f.some([1]).token_rate.tolist() == [0, 0]
    with pytest.raises(ScopeError, match="Unknown rate"):
        f.rate("word")


@pytest.mark.parametrize("rate", ["token", "sentence"])
def test_sets_are_nested_and_disjoint_from_the_noise(rate):
    own, noise = (Firing(torch.randint(0, 5, (6, 50), generator=draw).float(), torch.rand(6, 50, generator=draw), torch.full((6,), 9.0)) for _ in range(2))
    kept = lambda **k: set(specific_features(own, noise, rate=rate, max_features=50, **k))
    noisy = {i for i in range(50) if noise.rate(rate)[i] >= 0.3}
    assert kept(tau=0.1, rho=0.3) == kept(tau=0.1, rho=1.1) - noisy and not kept(rho=0.0)
    assert kept(tau=0.5, rho=1.1) <= kept(tau=0.2, rho=1.1) <= kept(tau=0.0, rho=1.1) == set(range(50))
    few = specific_features(own, noise, 0.0, 1.1, rate, 3)
    assert few == own.token_rate.argsort(descending=True, stable=True)[:3].tolist()
    assert THRESHOLDS[rate] == ((0.1, 0.05) if rate == "token" else (0.9, 0.3))
    for wrong in (dict(max_features=0), dict(tau=1.5), dict(tau=-0.1), dict(rho=-1.0), dict(tau=float("nan"))):
        with pytest.raises(ScopeError):
            specific_features(own, noise, rate=rate, **wrong)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_counts_are_those_of_single_texts(family):
    scope = Scope(tiny(family))
    sae = sae_from_texts(scope, ROWS, layer=1, n_features=24, k=3, steps=5)
    together = firing(scope, sae, ROWS)
    for i, row in enumerate(ROWS):
        z = sae.encode(scope.read(row, layers=1)["resid_post"][0, 0, 1:])
        torch.testing.assert_close(together.amounts[i], z.sum(0), rtol=1e-2, atol=1e-2)
        assert together.lengths[i] == len(row) - 1 and together.counts[i].sum() <= 3 * (len(row) - 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("mode", ["steer", "ablate"])
def test_both_modes_and_their_control(family, mode):
    scope = Scope(tiny(family))
    plain = scope.logits(ROWS[0])
    for make in (langfir, random_langfir):
        edits = make(scope, **SMALL, mode=mode)
        with scope.edit(*edits):
            assert (scope.logits(ROWS[0]) - plain).abs().max() > 1e-4
        again = make(scope, **SMALL, mode=mode)
        assert all(torch.equal(x, y) for x, y in zip(*(list(v for v in e[0].fn.parts().values() if torch.is_tensor(v)) for e in (edits, again))))
    assert torch.equal(scope.logits(ROWS[0]), plain)


def test_steering_moves_each_state_in_proportion_and_ablation_takes_it_back(scope, sae):
    h = torch.randn(30, 32, generator=draw) * torch.rand(30, 1, generator=draw).mul(9)
    found = find_language_features(scope, ROWS, sae, tau=0.01, rho=1.1, n_random=4, length=6)
    add, out = found.steer(0.7)[0].fn, found.ablate()[0].fn
    torch.testing.assert_close((add(h) - h).norm(dim=-1), 0.7 * h.norm(dim=-1))
    torch.testing.assert_close(out(add(h)), out(h), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out(out(h)), out(h), rtol=1e-3, atol=1e-3)
    assert ((out(h) - out.mean) @ out.basis.T).abs().max() < 1e-3 and torch.equal(out.mean, sae.centre)
    assert found.ablate(mean=0.0)[0].fn.mean == 0.0
    other = found.random(1)
    assert not set(other.indices) & set(found.indices) and len(set(other.indices)) == len(found.indices)
    assert found.random(1).indices == other.indices


def test_nothing_is_bit_equal(scope, sae):
    plain = scope.logits(ROWS[0])
    nothing = LanguageFeatures(sae, firing(scope, sae, ROWS), firing(scope, sae, ROWS), [])
    for edits in (nothing.steer(), nothing.ablate(), langfir(scope, alpha=0), langfir(scope, alpha=0.0, language=ROWS)):
        assert edits == []
        with scope.edit(*edits):
            assert torch.equal(scope.logits(ROWS[0]), plain)


@pytest.mark.parametrize("wrong", [dict(language=[]), dict(language=[[5]]), dict(language="xx"), dict(layers=99), dict(layers=[0, 1]), dict(layers=0), dict(sae="other"), dict(sae=None), dict(mode="add"),
                                   dict(alpha=float("nan")), dict(alpha=1e30), dict(alpha="1"), dict(alpha=True), dict(rate="word"), dict(tau=0.99), dict(rho=0.0), dict(n_random=0), dict(max_features=0)], ids=str)
def test_bad_input_is_refused(scope, sae, wrong):
    with pytest.raises(REFUSED):
        langfir(scope, **{**SMALL, "sae": sae, **wrong})


def test_noise_and_autoencoders_of_others(scope, sae):
    noise = firing(scope, sae, ROWS[:2])
    assert find_language_features(scope, ROWS, sae, tau=0.01, rho=1.1, noise=noise).noise is noise
    with pytest.raises(ScopeError, match="Noise of another autoencoder"):
        find_language_features(scope, ROWS, sae_from_texts(scope, ROWS, 10, layer=1, k=2, steps=2), noise=noise)
    with pytest.raises(ScopeError, match="does not fit this model"):
        langfir(scope, language=ROWS, sae=default_sae())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_half_precision(side):
    half = Scope(tiny("llama").to(torch.bfloat16))
    for mode in ("steer", "ablate"):
        with half.edit(*langfir(half, **SMALL, mode=mode, alpha=10)):
            assert half.logits(half.encode(ROWS, padding_side=side)).isfinite().all()


def test_the_matrix_is_zero_without_edits(scope):
    texts = {"a": ROWS[:2], "b": ROWS[2:4]}
    table = ablation_matrix(scope, {"nothing": [], "something": langfir(scope, **SMALL, alpha=2.0)}, texts)
    assert table.language.tolist() == ["a", "a", "b", "b"] and (table.nothing == 0).all() and (table.something != 0).all()
    alone = ablation_matrix(scope, {}, {"b": ROWS[2:3]})
    assert alone.plain[0] == pytest.approx(table.plain[2], rel=1e-4)
    for wrong in ({}, {"a": []}, {"a": [[5]]}):
        with pytest.raises(ScopeError):
            ablation_matrix(scope, {}, wrong)


def test_zero_vectors_and_edits_that_hold_nothing():
    h = torch.randn(4, 6, generator=draw)
    assert torch.equal(AddInProportion(torch.zeros(6), 1.0)(h), h)
    assert torch.equal(ProjectOut(orthonormal_basis(torch.zeros(0, 6)))(h), h)
    assert Edit("resid_post", fn=AddInProportion(torch.ones(6), 0.5)).fn.parts()["share"] == 0.5
