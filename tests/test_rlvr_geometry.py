"What an update did to the weights: identities, the null, checkpoints of every kind, memory."
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from architectures import tiny
from notebooks import ROOT
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.measure.spectra import principal_angles, principal_factors
from tokenscope.lenses.rlvr_geometry import (extreme_mask, jaccard, low_mask, mask_overlap, matrix_drift, principal_mask, random_drift, random_step, random_update_like, scramble_heads,
                                             spectral_shift, visible_update, weight_drift)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drift(W0, W1, k=3, alpha=0.3, **more):
    before = principal_factors(W0, k)
    return matrix_drift(W0, W1, before, (extreme_mask(before.weights().abs(), alpha), low_mask(W0, alpha)), **more)


shapes = st.sampled_from([(6, 6), (5, 9), (9, 5), (12, 3), (1, 7), (40, 30)])


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 99), st.floats(1e-3, 1.0))
def test_weyl_and_wedin_bound_every_update(shape, seed, size):
    W0, dW = rand(*shape, seed=seed), size * rand(*shape, seed=seed + 100)
    k = max(1, min(shape) // 2)
    before, after = principal_factors(W0, k), principal_factors(W0 + dW, k)
    top = torch.linalg.matrix_norm(dW.double(), 2)
    assert ((after.s - before.s).abs() <= top + 1e-5).all()
    assert spectral_shift(before.s, after.s) <= float(dW.norm() / W0.norm()) + 1e-6  # Mirsky
    if k < min(shape) and (gap := before.s[k - 1] - after.s[k]) > 0.05:
        for A, B in ((before.U, after.U), (before.V, after.V)):
            assert principal_angles(A, B).deg2rad().sin().max() <= top / gap + 1e-4


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(0, 99))
def test_factors_are_the_svd(shape, seed):
    W = rand(*shape, seed=seed)
    k = max(1, min(shape) // 2)
    top, (U, s, Vh) = principal_factors(W, k), torch.linalg.svd(W.double(), full_matrices=False)
    torch.testing.assert_close(top.s, s, atol=1e-6, rtol=1e-6)
    for mine, theirs in ((top.U, U[:, :k]), (top.V, Vh[:k].T)):
        torch.testing.assert_close(mine.T @ mine, torch.eye(k, dtype=torch.float64), atol=1e-6, rtol=0)
        assert principal_angles(mine, theirs).max() < 1e-3
    torch.testing.assert_close(top.weights().double(), (U[:, :k] * s[:k]) @ Vh[:k], atol=1e-5, rtol=1e-4)


def test_known_updates():
    U, s, V = torch.linalg.svd(rand(8, 12).double(), full_matrices=False)
    s = torch.linspace(10, 3, 8).double()
    W = (U * s) @ V
    for i, inside in ((0, 1.0), (6, 0.0)):
        W1 = W + 0.5 * torch.outer(U[:, i], V[i])
        found = drift(W.float(), W1.float(), dtype=torch.float32, eta=0)
        assert found["nss"] == pytest.approx(0.5 / float(s.norm()), rel=1e-3) and found["rot_U_max"] < 1e-3 and found["princ_energy"] == pytest.approx(inside, abs=1e-4)
    Q = torch.linalg.qr(rand(8, 8, seed=3).double())[0]
    turned = drift(W.float(), (Q @ W).float())
    assert turned["nss"] < 1e-6 and turned["rot_U"] > 10 and turned["rot_V_max"] < 1e-3
    assert float(principal_angles(U[:, :1], (U[:, :1] + 1e-9 * U[:, 1:2]))) == pytest.approx(math.degrees(1e-9), rel=1e-3)  # too small for a cosine


def test_no_update():
    W = rand(9, 7)
    before = W.clone()
    assert not visible_update(W, W, dtype=torch.float32).any() and torch.equal(W, before)  # nothing is done in place
    W = W.bfloat16()
    found = drift(W, W)
    assert found["visible"] == found["nss"] == 0 and found["rot_U_max"] < 1e-5 and math.isnan(found["ov_low"]) and math.isnan(found["princ_energy"]) and math.isnan(jaccard(W > 9, W > 9).value)


def test_what_bfloat16_shows():
    one = torch.ones(1, 1)
    assert not visible_update(one, one + 2**-8).any() and visible_update(one, one + 2**-7).all() and visible_update(one, one + 2**-8, eta=0, dtype=torch.float32).all()
    assert visible_update(one * 2**-10, one * 2**-10 + 2**-17).all() and not visible_update(one, one + 2**-17).any()
    w = rand(200, 50).bfloat16().float()
    w = w[torch.frexp(w)[0].abs() != 0.5][None]  # not the powers of two: the spacing below them is half
    ulp = 2.0 ** (torch.frexp(w)[1] - 8)
    assert not visible_update(w, w + 0.49 * ulp).any() and visible_update(w, w + 0.51 * ulp).all()


@settings(max_examples=40, deadline=None)
@given(shapes, st.floats(0, 1), st.integers(1, 4), st.booleans())
def test_masks_hold_exactly_their_share(shape, alpha, values, largest):
    W = torch.randint(values, shape, generator=torch.Generator().manual_seed(0)).float()  # full of ties
    mask = extreme_mask(W, alpha, largest)
    order = W.flatten().argsort(descending=largest, stable=True)[:round(alpha * W.numel())]
    assert torch.equal(mask.flatten().nonzero()[:, 0], order.sort().values)
    assert principal_mask(W + 1, 1, alpha).sum() == low_mask(W, alpha).sum() == round(alpha * W.numel())


def test_overlap_and_jaccard_of_independent_masks():
    a, b = rand(400, 400) > 0.5, rand(400, 400, seed=1) > 1.0
    assert jaccard(a, b).value == pytest.approx(jaccard(a, b).expected, abs=3e-3) and mask_overlap(a, b).value == pytest.approx(mask_overlap(a, b).expected, abs=5e-3)
    assert jaccard(a, a).value == 1 and mask_overlap(a, b).value / mask_overlap(a, b).expected == pytest.approx(mask_overlap(b, a).value / mask_overlap(b, a).expected)


@pytest.mark.parametrize("how", ["gauss", "sign", "permute"])
def test_the_null_has_the_size_and_nothing_else(how):
    W0 = rand(60, 80).bfloat16()
    W1 = W0 + 0.01 * rand(60, 80, seed=1)
    made = random_update_like(W0, W1, how, dtype=torch.float32, seed=5)
    assert (made - W0).norm() == pytest.approx(float((W1 - W0.float()).norm()), rel=1e-4) and torch.equal(made, random_update_like(W0, W1, how, dtype=torch.float32, seed=5))
    seen = [float(visible_update(W0, W).float().mean()) for W in (W1, random_update_like(W0, W1, how, "visible"))]
    assert seen[0] == pytest.approx(seen[1], abs=0.2 if how == "sign" else 5e-3) and random_update_like(W0, W0, how).equal(W0)


def test_rounding_alone_makes_the_picture():
    "The heart of the page, on a matrix that no one trained: rounded, small weights are preferred; without rounding no weights are."
    W = 0.05 * rand(96, 96)
    model = {"layers.0.x.weight": W.bfloat16()}
    seen, raw = (weight_drift(model, random_step(model, 1 / 512), dtype=t, eta=e).table.iloc[0] for t, e in ((torch.bfloat16, 1e-3), (torch.float32, 0)))
    assert seen.ov_low > 0.6 and seen.ov_princ < 0.27 and raw.visible > 0.999 and raw.ov_low == pytest.approx(0.3, abs=1e-3) == raw.ov_princ


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_architectures_files_shards_and_live_models_agree(family, tmp_path):
    model = tiny(family)
    plain = {n: p.clone() for n, p in model.state_dict().items()}
    after = {n: p + 0.01 * rand(*p.shape, seed=1) for n, p in plain.items() if p.is_floating_point()}
    report = weight_drift(model, after, k=0.25)
    control = random_drift(Scope(model), after, k=0.25)
    assert len(report.table) >= 3 * 4 and report.table.drop(columns=["matrix", "name"]).notna().all(axis=None) and report.to_df().equals(weight_drift(model, after, k=0.25).to_df())
    assert not report.to_df().equals(control.to_df()) and (report.table.layer.unique() == [0, 1, 2]).all() and not report.table.name.str.contains("emb|wte|lm_head").any()
    assert all(torch.equal(p, plain[n]) for n, p in model.state_dict().items()) and not any(m._forward_hooks for m in model.modules())
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "shards/model.safetensors.index.json").exists()
    for kept in (tmp_path / "shards", str(tmp_path / "whole"), tmp_path / "whole/model.safetensors"):
        same = weight_drift(kept, model, layers=1, match="*attn*")
        assert len(same.table) and (same.table.visible == 0).all() and (same.table.layer == 1).all()
    assert "<img" in report._repr_html_() and "DriftReport" in repr(report) and len(report.by_matrix()) == report.table.matrix.nunique()


def test_dtypes_differ_and_experts_are_single_matrices():
    W = rand(2, 3, 8, 6)
    half, full = ({f"layers.{i}.experts.up": W[i].to(t) for i in range(2)} for t in (torch.bfloat16, torch.float32))
    report = weight_drift(half, full, k=2)  # cast to the coarser format first, nothing has changed
    assert list(report.table.name) == [f"layers.{i}.experts.up[{e}]" for i in range(2) for e in range(3)] and (report.table.visible == 0).all()
    assert (weight_drift(half, full, k=2, dtype=torch.float32, eta=0).table.visible > 0.9).all() and len(random_drift(half, full, k=2).table) == 6


@pytest.mark.parametrize("wrong, message", [
    (dict(model1={"layers.0.a.weight": rand(8, 7)}), "A matrix with two shapes"), (dict(model1={"layers.0.b.weight": rand(8, 6)}), "do not hold the same matrices"),
    (dict(model1={"emb.weight": rand(8, 6)}), "No matrices there"), (dict(model1={}), "No matrices there"), (dict(model1=3), "Not a checkpoint"), (dict(model1="nowhere.safetensors"), "No safetensors there"),
    (dict(model1={"layers.0.a.weight": rand(8, 6) * math.nan}), "No spectrum"), (dict(model1={"layers.0.a.weight": torch.zeros(8, 6)}), "No spectrum"),
    (dict(model1={"layers.0.a.weight": torch.ones(8, 6, dtype=torch.int8)}), "Quantised weights"), (dict(k=0), "Not a number of directions"), (dict(k=7), "Not a number of directions"),
    (dict(alpha=1.2), "Not a share of the weights"), (dict(null="levy"), "Unknown kind of random update"), (dict(null_match="rank"), "Unknown size to match"), (dict(layers=4), "No such layer"), (dict(match="x*"), "No matrices there")])
def test_bad_input(wrong, message):
    model = {"layers.0.a.weight": rand(8, 6)}
    with pytest.raises(ScopeError, match=message):
        weight_drift(model, **{"model1": model, **wrong})


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3"])
def test_scrambled_heads_keep_the_function(family):
    model = tiny(family)
    ids = torch.arange(3, 15)[None]
    plain, before = model(ids).logits, {n: p.clone() for n, p in model.state_dict().items()}
    scramble_heads(model.model.layers[1].self_attn, seed=3)
    assert (model(ids).logits - plain).abs().max() < 1e-4 * plain.abs().max()
    moved = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    assert {n.rsplit(".", 2)[1] for n in moved} >= {"v_proj", "o_proj"} and all(".layers.1.self_attn." in n for n in moved)


MEASURE = """
import sys, torch
from tokenscope.lenses.rlvr_geometry import weight_drift
memory = lambda field: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
torch.set_num_threads(1)
weight_drift({"layers.0.a.weight": torch.eye(64)}, {"layers.0.a.weight": torch.eye(64)}, k=2)  # imports and buffers
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
before = memory("VmRSS")
report = weight_drift(sys.argv[1], sys.argv[2], k=2)
print(len(report.table), memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_memory_is_that_of_one_pair(tmp_path):
    "The peak grows with the largest pair and not with the number of matrices. (Blocks of 1 MB go back to the system when freed, as the larger blocks of real models do anyway.)"
    grown = {}
    for n in (2, 8):
        for side in (0, 1):
            save_file({f"layers.{i}.a.weight": rand(64, 32_768, seed=i + side).bfloat16() for i in range(n)}, tmp_path / f"{n}{side}.safetensors")
        done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / f"{n}0.safetensors"), str(tmp_path / f"{n}1.safetensors")], capture_output=True, text=True, cwd=ROOT,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}, check=True)
        count, grown[n] = (float(x) for x in done.stdout.split())
        assert count == n
    pair = 2 * 64 * 32_768 * 2 / 2**20
    print(f"\nlargest pair {pair:.0f} MiB, both checkpoints {8 * pair:.0f} MiB, peak {grown[8]:.0f} MiB ({grown[2]:.0f} with 2 matrices): {grown[8] / pair:.1f} pairs")
    assert pair < grown[8] < grown[2] + pair and grown[8] < pair + 1000
