"Sparse language shifts on four architectures, on codes made by hand, and on bad input; spectra, token sets and units."
import math
import warnings
from dataclasses import replace

import pytest
import torch

from architectures import VOCAB, tiny
from tokenscope import load
from tokenscope.change.directions import difference_of_means
from tokenscope.core.edit import Edit
from tokenscope.measure.language_mass import language_mass, mass_of, token_sets
from tokenscope.data.languages import parallel_text
from tokenscope.text.names import ScopeError
from tokenscope.measure.sae import SparseAutoencoder
from tokenscope.measure.sae_training import fit_sae
from tokenscope.core.scope import Scope
from tokenscope.measure.spectra import shift_geometry, spectrum_rank
from tokenscope.measure.units import units_behind
from tokenscope.steering.neural_foxp2 import (SparseShift, causal_lift, choose_window, foxp2_edits, language_layers, mass_along, neural_foxp2, parallel_states, random_foxp2,
                                              selectivity, technique)

GIVEN = technique["example"]
TEXTS = GIVEN["target"], GIVEN["english"]
SETS = torch.tensor([5, 6, 8]), torch.tensor([40, 44])
PROMPTS = GIVEN["prompts"]
normal = lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_one_token_behind_a_cache_is_the_whole_prompt(family):
    scope = Scope(tiny(family))
    added = torch.nn.functional.normalize(normal(4, 32), dim=-1)
    for prompt in ([9, 8, 7, 30, 2], [11]):
        fast = mass_along(scope, prompt, 1, added, SETS)
        length = scope.read([prompt], "resid_post", layers=1, positions=-1)["resid_post"].norm()
        for row, found in zip(added, fast):
            with scope.edit(Edit("resid_post", layers=1, add=row * length, positions="last")):
                assert language_mass(scope, [prompt], SETS).item() == pytest.approx(found.item(), abs=1e-5)
    lift, gain = causal_lift(scope, added, 1, PROMPTS, SETS, (0.1, 1.0))
    other, _ = causal_lift(scope, added.flip(0), 1, PROMPTS[::-1], (SETS[0].flip(0), SETS[1].flip(0)), (0.1, 1.0))
    assert torch.allclose(lift, other.flip(0), atol=1e-5) and gain.shape == (2, 4)
    assert torch.allclose(lift, torch.stack([gain[0] / 0.1, gain[1]]).mean(0), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_the_control_moves_every_state_as_far(family):
    scope = Scope(tiny(family))
    made, control = (f(scope, **{**GIVEN, "layers": [0, 2], "beta": 0.0}) for f in (neural_foxp2, random_foxp2))
    assert len(made) == len(control) > 0 and {e.positions for e in made} == {"last", "generated"}
    h = normal(3, 5, 32) * 7
    for a, b in zip(made, control):
        x, y = a.fn(h) - h, b.fn(h) - h
        assert torch.allclose(x.norm(dim=-1), y.norm(dim=-1), rtol=1e-3) and not torch.allclose(x, y)
        assert torch.allclose(a.fn(10 * h), 10 * a.fn(h), rtol=1e-3, atol=1e-3)
    again = neural_foxp2(scope, **{**GIVEN, "layers": [0, 2], "beta": 0.0})
    assert all(torch.equal(a.fn.W_dec, b.fn.W_dec) and torch.equal(a.fn.target, b.fn.target) for a, b in zip(made, again))


def test_only_the_last_token_is_moved_and_neutral_is_nothing():
    scope = Scope(tiny("llama"))
    ids = torch.tensor([[9, 8, 7, 30, 2]])
    plain = scope.model(ids).logits
    with scope.edit(*neural_foxp2(scope, **GIVEN)):
        moved = scope.model(ids).logits
    assert torch.equal(moved[:, :-1], plain[:, :-1]) and not torch.equal(moved[:, -1], plain[:, -1])
    for edits in (neural_foxp2(scope, lam=0, beta=0), neural_foxp2(scope, lam=0.0, beta=0.0, layers=1)):
        assert edits == []
    every = neural_foxp2(scope, **{**GIVEN, "positions": "not first"})
    assert len(every) == 1 and every[0].positions == "not first"


def test_a_shift_by_hand():
    mu = torch.nn.functional.normalize(normal(6), dim=-1)
    basis = torch.linalg.qr(torch.stack([mu, normal(6, seed=1)], 1))[0].T
    other = torch.nn.functional.normalize(normal(6, seed=2) @ basis.T @ basis, dim=-1)
    move = SparseShift(normal(8, 6), torch.zeros(6), torch.nn.functional.normalize(normal(6, 8), dim=-1), other, mu, basis, 0.0, 1.0)
    z = normal(5, 6).abs()
    assert ((z + move.shift(z)) @ mu).abs().max() < 1e-5
    assert torch.allclose(move.shift(z), -(z @ mu)[:, None] * mu, atol=1e-5)
    there = replace(move, lam=2.0, beta=0.0)
    assert torch.allclose(there.shift(z), 2 * other.expand(5, 6)) and torch.allclose(replace(there, lam=4.0).shift(z), 2 * there.shift(z))
    h = normal(2, 8) * 50
    assert torch.allclose(there(h) - h, h.norm(dim=-1, keepdim=True) * (2 * other @ there.W_dec), rtol=1e-4, atol=1e-3)
    assert torch.equal(replace(move, lam=0.0, beta=0.0)(h), h)
    assert move(torch.zeros(1, 8)).isfinite().all() and move(h.bfloat16()).dtype == torch.bfloat16
    assert set(move.parts()) == {"W_enc", "b_enc", "W_dec", "target", "english", "basis", "lam", "beta"}


def test_spectra():
    assert spectrum_rank(torch.ones(4))[0] == 4 and spectrum_rank(torch.tensor([1.0, 0, 0])) == (1, 1, 1) and spectrum_rank(torch.tensor([2.0])) == (1, 1, 1)
    assert spectrum_rank(torch.tensor([8, 7, 1, 0.9])) == (3, 2, 2)
    one = shift_geometry(torch.ones(7, 1) @ normal(1, 5))
    assert len(one.basis) == 1 and one.mass == pytest.approx(1) and one.stability == pytest.approx(1) and one.score == pytest.approx(1)
    noise = shift_geometry(normal(30, 8), rank=3)
    P = noise.basis.T @ noise.basis
    assert torch.allclose(P @ P, P, atol=1e-5) and P.trace().item() == pytest.approx(3, abs=1e-4) and 0 <= noise.stability <= 1 > noise.mass
    assert len(shift_geometry(normal(3, 8), rank=9).basis) == 3
    for empty in (torch.zeros(4, 3), torch.zeros(4, 0)):
        with pytest.raises(ScopeError, match="No shift"):
            shift_geometry(empty)


def test_windows():
    scores = {4: 0.1, 6: 0.5, 8: 0.6, 10: 0.5, 12: 0.1}
    assert choose_window(scores, 3, 3) == [6, 8, 10] and choose_window(scores) == [4, 6, 8, 10, 12] and choose_window({3: 0.2}) == [3]


def test_selectivity_and_states():
    a, b = normal(20, 6), normal(20, 6, seed=1)
    assert torch.equal(selectivity(a, b), -selectivity(b, a)) and selectivity(a, a).abs().max() == 0
    assert selectivity(torch.zeros(4, 2), torch.zeros(4, 2)).tolist() == [0, 0]
    scope = Scope(tiny("llama"))
    tokens, ends = parallel_states(scope, TEXTS[0], [0, 2], cuts=(0.5, 1.0))
    assert tokens.shape == (8 + 7, 2, 32) and ends.shape == (4, 2, 32)
    alone = scope.read([TEXTS[0][1]], "resid_post", layers=[0, 2], positions=-1)["resid_post"][0, :, 0]
    assert torch.allclose(ends[3], alone, atol=1e-4)
    with pytest.raises(ScopeError, match="A text of one token"):
        parallel_states(scope, [[5]], [0])


@pytest.mark.parametrize("wrong", [dict(lam=float("nan")), dict(beta=float("inf")), dict(lam=1e38), dict(layers=7), dict(target="xyz"), dict(target=[]), dict(target=[[5, 6]]), dict(target=[[5], [6]]),
                                   dict(english=[[]] * 2), dict(target=list(TEXTS[1])), dict(n_features=0), dict(l1=-1.0), dict(prompts=[])])
def test_what_cannot_be_meant(wrong):
    with pytest.raises((ScopeError, TypeError)):
        neural_foxp2(Scope(tiny("llama")), **{**GIVEN, **wrong})


def test_autoencoders_of_another_kind_and_no_feature_at_all():
    scope = Scope(tiny("llama"))
    sae = fit_sae(normal(50, 32), 16, l1=0.01, tied=True, inputs="unit", steps=3, layer=1)
    for wrong in (replace(sae, inputs="none"), replace(sae, layer=0), replace(sae, activation="topk", k=2)):
        with pytest.raises(ScopeError, match="Not an autoencoder for this"):
            language_layers(scope, *TEXTS, [1], PROMPTS, saes={1: wrong}, top=4, shares=(1.0,))
    silent = replace(sae, b_enc=torch.full((16,), -9.0))
    assert language_layers(scope, *TEXTS, [1], PROMPTS, saes={1: silent}, top=4, shares=(1.0,)) == {} and foxp2_edits({}, [1], 1.0, 0.0) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(neural_foxp2(scope, **GIVEN)) == 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_units_add_up_to_what_the_mlp_writes(family):
    scope = Scope(tiny(family))
    direction = torch.nn.functional.normalize(normal(32), dim=-1)
    units, parts = units_behind(scope, direction, 0, *TEXTS, k=10_000)
    if family != "gemma2":  # its norm after the MLP is not part of what the units write
        whole = difference_of_means(scope, *TEXTS, site="mlp_out", layers=0).vectors[0] @ direction
        assert parts.sum().item() == pytest.approx(whole.item(), abs=1e-4)
    assert len(set(units.tolist())) == len(units) and (parts.diff() <= 0).all()


def test_token_sets_are_of_words():
    scope = Scope(tiny("llama"))
    target, english = token_sets(scope, *TEXTS)
    assert set(target.tolist()) <= {5, 6, 7, 8, 9} and set(english.tolist()) <= {40, 41, 42, 44, 45} and len(target) and len(english)
    p = normal(3, VOCAB).softmax(-1)
    assert torch.allclose(mass_of(p, (target, english)), -mass_of(p, (english, target))) and mass_of(p, (target, english)).abs().max() <= 1
    real = load()
    text = parallel_text(["spa", "eng", "hin"])
    spanish, english = (set(x.tolist()) for x in token_sets(real, text["spa"], text["eng"]))
    one = lambda word: real.tokenizer(word)["input_ids"][0]
    assert one(" the") in english and one("The") in english and one(" los") in spanish and one("Los") in spanish and not spanish & english
    with pytest.raises(ScopeError, match="No tokens speak"):
        token_sets(real, text["hin"], text["eng"])
    assert not math.isnan(language_mass(real, ["The sea is"], (torch.tensor(sorted(spanish)), torch.tensor(sorted(english)))).item())
    assert isinstance(fit_sae(normal(9, 4), 3, l1=0.1, tied=True, inputs="unit", steps=2), SparseAutoencoder)
