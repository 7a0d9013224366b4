"Atomic units on bad input, on several architectures, against hand-made cases."
import pytest
import torch
from dataclasses import replace

from architectures import VOCAB, tiny
from tokenscope.change.contrasts import Contrasts
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.steering.austeer import (AtomicUnits, RANKINGS, atomic_units, au_tokens, austeer, momentum, random_units, same_layer_units, unit_column, unit_edits,
                                         unit_picture, word_contrasts)

DRAW = torch.Generator().manual_seed(7)
PROMPTS = [torch.randint(3, VOCAB - 1, (n,), generator=DRAW).tolist() for n in (5, 9, 2, 4, 7, 5)]
ANSWERS = [[40], [41, 42], [43], [44], [45, 46, 47], [48]]
PAIRS = (PROMPTS, ANSWERS, ANSWERS[1:] + ANSWERS[:1])  # every answer is right once and wrong once
REFUSED = (ScopeError, TypeError)


@pytest.fixture(scope="module")
def llama():
    return Scope(tiny("llama"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_every_ranking_mode_and_site_on_every_architecture(family):
    scope = Scope(tiny(family))
    plain = scope.logits(PROMPTS[1])
    for site in ("z", "mlp_out", "resid_post", *(["mlp_post"] if family != "mixtral" else [])):
        for ranking in RANKINGS:
            for mode in ("scale", "add"):
                edits = austeer(scope, contrasts=PAIRS, site=site, k=10, alpha=5.0, ranking=ranking, mode=mode)
                turned = sum(int(((e.scale != 1) if mode == "scale" else (e.add != 0)).sum()) for e in edits)
                assert turned == 10 and len({e.layers for e in edits}) == len(edits)
                with scope.edit(*edits):
                    moved = (scope.logits(PROMPTS[1]) - plain).abs()
                assert moved.isfinite().all() and moved[0, 1:].max() > 1e-6 and moved[0, 0].max() < 1e-4  # the first token is left out
    assert torch.equal(scope.logits(PROMPTS[1]), plain)


def test_momentum_by_hand():
    m = torch.tensor([[0.2, 1.0, 0.0, -1.0], [3.0, 1.0, 0.0, -2.0], [-0.1, -1.0, 0.0, -3.0], [0.0, -1.0, 0.0, 0.0]])
    assert momentum(m).tolist() == [0.5, 0.5, 0.0, -0.75]
    units = AtomicUnits(m[:, None], torch.ones(1, 4), torch.ones(1, 4), [0], "resid_post")
    assert units.top(None).tolist() == [[True, True, False, True]] and units.top(1).tolist() == [[False, False, False, True]]
    assert units.top(2).tolist() == [[True, False, False, True]]  # a tie goes to the larger |t|
    assert units.top(0).sum() == 0 and repr(units) == "AtomicUnits(4 numbers at resid_post, 1 layers, 4 pairs)"


def test_flipped_pairs_and_random_units_are_fair_controls(llama):
    units = atomic_units(llama, Contrasts(*PAIRS))
    flipped = units.flipped(3)
    assert torch.equal(flipped.moves.abs(), units.moves.abs())
    assert ((flipped.moves * units.moves).sum((1, 2)) < 0).sum() == len(PROMPTS) // 2 and not torch.equal(flipped.moves, units.flipped(4).moves)
    chosen = units.top(20)
    drawn = same_layer_units(chosen, 1)
    assert torch.equal(drawn.sum(1), chosen.sum(1)) and torch.equal(drawn, same_layer_units(chosen, 1)) and not torch.equal(drawn, same_layer_units(chosen, 2))
    a, b = austeer(llama, contrasts=PAIRS, k=20), random_units(llama, contrasts=PAIRS, k=20)
    assert [e.layers for e in a] == [e.layers for e in b] and any(not torch.equal(x.scale, y.scale) for x, y in zip(a, b))


def test_swapped_scaled_and_batched(llama):
    units, back = atomic_units(llama, Contrasts(*PAIRS)), atomic_units(llama, Contrasts(*PAIRS).swapped())
    assert torch.equal(back.moves, -units.moves) and torch.equal(back.beta.abs(), units.beta.abs())
    assert torch.equal(replace(units, moves=4 * units.moves).beta, units.beta)
    alone = torch.cat([atomic_units(llama, Contrasts(*PAIRS)[[i]]).moves for i in range(len(PROMPTS))])
    torch.testing.assert_close(alone, units.moves, atol=1e-4, rtol=1e-4)
    some = atomic_units(llama, Contrasts(*PAIRS), layers=[2, 0])
    assert some.layers == [2, 0] and torch.allclose(some.moves, units.moves[:, [2, 0]], atol=1e-5)
    assert {e.layers for e in austeer(llama, contrasts=PAIRS, k=60, layers=[2, 0])} == {0, 2}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_one_unit_moves_the_block_along_its_column(family):
    scope = Scope(tiny(family))
    for site, outlet in (("z", "attn_out"), ("mlp_post", "mlp_out")):
        units = atomic_units(scope, Contrasts(*PAIRS), site)
        one = torch.zeros_like(units.top(0)); one[1, 13] = True
        x, before = (scope.read(PROMPTS[0], s, layers=1)[s][0, 0] for s in (site, outlet))
        with scope.edit(*unit_edits(scope, units, one, 3.0, positions="all")):
            after = scope.read(PROMPTS[0], outlet, layers=1)[outlet][0, 0]
        want = 3 * units.beta[1, 13] * x.flatten(1)[:, [13]] * unit_column(scope, site, 1, 13)
        torch.testing.assert_close(after - before, want, atol=1e-4, rtol=1e-3)
    assert unit_column(scope, "resid_post", 1, 5).tolist() == [float(i == 5) for i in range(32)]
    strip = au_tokens(scope, "z", 1, 13, n=3)
    assert len(strip) == 6 and sorted(strip.values, reverse=True) == strip.values.tolist()


def test_generate_with_padding_and_batches(llama):
    edits = austeer(llama, contrasts=PAIRS, k=30, alpha=8.0)
    with llama.edit(*edits):
        together = llama.generate(PROMPTS[:3], max_new_tokens=5, eos_token_id=None)
        assert together == [llama.generate(p, max_new_tokens=5, eos_token_id=None) for p in PROMPTS[:3]]


@pytest.mark.parametrize("wrong", [dict(contrasts=([], [], [])), dict(contrasts=(PROMPTS, ANSWERS)), dict(contrasts=(PROMPTS, ANSWERS, ANSWERS)), dict(contrasts=(PROMPTS, ANSWERS, ANSWERS[:2])),
                                   dict(contrasts=([[5], []], [[6], [7]], [[7], [6]])), dict(contrasts=([[5]], [[6]], [[VOCAB + 5]])), dict(contrasts=([[5] * 64], [[6]], [[7]])),
                                   dict(k=97), dict(k=-1), dict(k=True), dict(alpha=float("nan")), dict(alpha=float("inf")), dict(alpha="2"), dict(mode="times"), dict(ranking="best"),
                                   dict(site="pattern"), dict(site="logits"), dict(site="nowhere"), dict(layers=3), dict(layers=[]), dict(positions="second"), dict(contrasts=None)])
def test_what_cannot_be_meant(llama, wrong):
    with pytest.raises(REFUSED):
        austeer(llama, **{"contrasts": PAIRS, "k": 8, **wrong})


def test_pairs_without_a_direction_are_refused(llama):
    with pytest.raises(ScopeError, match="No unit moves"):
        atomic_units(llama, Contrasts([[5, 6]], [[7, 8]], [(7, 8)]))


def test_states_that_are_not_finite_are_refused():
    broken = tiny("llama", trainable=False)
    broken.model.layers[1].self_attn.v_proj.weight[:] = float("nan")
    with pytest.raises(ScopeError, match="not finite"):
        austeer(Scope(broken), contrasts=PAIRS, k=8)


def test_unbalanced_answers_are_noticed(llama):
    with pytest.warns(UserWarning, match="Unbalanced answers"):
        atomic_units(llama, Contrasts(PROMPTS[:2], [[40], [40]], [[41], [41]]))


def test_strengths_that_half_precision_cannot_hold():
    brain = Scope(tiny("llama").to(torch.bfloat16))
    for mode in ("scale", "add"):
        with pytest.raises(ScopeError, match="Too strong for bfloat16"):
            austeer(brain, contrasts=PAIRS, k=8, alpha=1e25, mode=mode)
        with brain.edit(*austeer(brain, contrasts=PAIRS, k=8, alpha=1e6, mode=mode)):
            assert brain.logits(PROMPTS[1]).isfinite().all()
    with pytest.raises(ScopeError, match="Too strong for float16"):
        austeer(Scope(tiny("llama").to(torch.float16)), contrasts=PAIRS, k=8, alpha=1e6)


def test_units_of_another_model_do_not_fit(llama):
    wide = Scope(tiny("llama", hidden_size=64, num_attention_heads=8))
    deep = Scope(tiny("llama", num_hidden_layers=5))
    units = atomic_units(deep, Contrasts(*PAIRS))
    with pytest.raises(ScopeError, match="do not fit"):
        unit_edits(llama, units, units.top(8), 2.0)
    with pytest.raises(ScopeError, match="do not fit"):
        unit_edits(deep, units, units.top(8)[:, :10], 2.0)
    with pytest.raises(ScopeError, match="does not fit"), llama.edit(*austeer(wide, contrasts=PAIRS, k=8)):
        llama.logits(PROMPTS[0])


def test_a_unit_that_is_not_there(llama):
    for site, layer, index in (("z", 0, 32), ("z", 3, 0), ("mlp_post", 1, 48), ("pattern", 0, 0), ("v", 0, 0), ("embed", 0, 0)):
        with pytest.raises(ScopeError):
            au_tokens(llama, site, layer, index)


def test_picture_and_words():
    pairs = word_contrasts()
    assert len(pairs) == 160 and sorted(pairs.right) == sorted(pairs.wrong)
    units = atomic_units(Scope(tiny("llama")), Contrasts(*PAIRS))
    fig = unit_picture(units, units.top(5))
    assert len(fig.axes[0].collections) == 2 and fig.axes[0].get_xlabel() == "dimension of z"
