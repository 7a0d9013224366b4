"Autoencoders on models of several families, and folders of SAELens."
import json

import pytest
import torch
from safetensors.torch import save_file

from architectures import VOCAB, tiny
from test_sae import ROWS
from tokenscope.text.names import ScopeError
from tokenscope.measure.sae import code_batches, feature_scores
from tokenscope.measure.saelens import load_saelens
from tokenscope.measure.sae_texts import random_sequences, sae_from_texts
from tokenscope.core.scope import Scope


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_codes_of_a_batch_are_those_of_single_texts(family):
    scope = Scope(tiny(family))
    sae = sae_from_texts(scope, ROWS, layer=-1, n_features=24, k=3, steps=10)
    assert sae.layer == 2 and sae.width == 32
    together = {}
    for numbers, z, meant in code_batches(scope, sae, ROWS, batch_tokens=40):
        together |= {i: z[row][meant[row]] for row, i in enumerate(numbers)}
    for i, row in enumerate(ROWS):
        alone = sae.encode(scope.read(row, layers=2)["resid_post"][0, 0, 1:])
        torch.testing.assert_close(together[i], alone, rtol=1e-2, atol=1e-3)
        strip = feature_scores(scope, sae, row, 5)
        assert len(strip.values) == len(row) and torch.allclose(torch.tensor(strip.values[1:]).float(), alone[:, 5], atol=1e-3)
    with pytest.raises(ScopeError):
        feature_scores(scope, sae, ROWS[0], 24)


def test_half_precision_states():
    scope = Scope(tiny("llama").to(torch.bfloat16))
    assert sae_from_texts(scope, ROWS, layer=1, n_features=8, k=2, steps=3).W_dec.dtype == torch.float32


def test_random_sequences():
    scope = Scope(tiny("llama"))
    drawn = random_sequences(scope, 5, 7, seed=3)
    assert drawn == random_sequences(scope, 5, 7, seed=3) != random_sequences(scope, 5, 7) and {len(r) for r in drawn} == {7}
    assert 0 <= min(map(min, drawn)) <= max(map(max, drawn)) < VOCAB
    for wrong in (dict(n_sequences=0), dict(length=0)):
        with pytest.raises(ScopeError):
            random_sequences(scope, **wrong)


def folder_of(path, weights, **cfg):
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(dict(d_in=6, d_sae=9, hook_name="blocks.1.hook_resid_post", **cfg)))
    save_file(weights, path / "sae_weights.safetensors")
    return path


WEIGHTS = {name: torch.randn(*shape, generator=torch.Generator().manual_seed(i)) for i, (name, shape) in enumerate(dict(W_enc=(6, 9), W_dec=(9, 6), b_enc=(9,), b_dec=(6,)).items())}
X = torch.randn(50, 6, generator=torch.Generator().manual_seed(9)) + 0.3


def by_hand(x, w, kind, minus, norm, mean_norm=None, rescale=False):
    "The reconstruction as SAELens defines it."
    scale, shift = torch.ones(len(x), 1), 0
    if norm == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / 6 ** 0.5
    elif norm == "layer_norm":
        shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    elif norm == "expected_average_only_in":
        scale = torch.full((len(x), 1), mean_norm / 6 ** 0.5)
    seen = (x - shift) / (scale + (1e-5 if norm == "layer_norm" else 0))
    before = (seen - minus * w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    lengths = w["W_dec"].norm(dim=-1) if rescale else torch.ones(9)
    if kind == "topk":
        top = (before * lengths).topk(3, dim=-1)
        z = torch.zeros_like(before).scatter(-1, top.indices, top.values.relu()) / lengths
    else:
        z = before.relu() * (before > w.get("threshold", torch.zeros(9)))
    return (z @ w["W_dec"] + w["b_dec"]) * scale + shift


@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm", "expected_average_only_in"])
@pytest.mark.parametrize("minus", [True, False])
@pytest.mark.parametrize("kind, rescale", [("standard", False), ("jumprelu", False), ("topk", False), ("topk", True)])
def test_saelens_folders(tmp_path, kind, rescale, minus, norm):
    weights = WEIGHTS | ({"threshold": torch.rand(9)} if kind == "jumprelu" else {})
    more = dict(mean_norm=2.0) if norm == "expected_average_only_in" else {}
    inner = dict(model_name="their-name") if minus else {}
    sae = load_saelens(folder_of(tmp_path / "a", weights, architecture=kind, normalize_activations=norm, apply_b_dec_to_input=minus, k=3, rescale_acts_by_decoder_norm=rescale, metadata=inner), **more)
    assert (sae.site, sae.layer, sae.model) == ("resid_post", 1, "")
    torch.testing.assert_close(sae.reconstruct(X), by_hand(X, weights, kind, minus, norm, rescale=rescale, **more), rtol=1e-3, atol=1e-3)
    if kind != "topk" or rescale:
        torch.testing.assert_close(sae.W_dec.norm(dim=-1) / sae.W_dec.norm(dim=-1).mean(), torch.ones(9)) if norm != "expected_average_only_in" else None


def test_old_configs_keep_k_in_the_activation(tmp_path):
    sae = load_saelens(folder_of(tmp_path / "a", WEIGHTS, activation_fn_str="topk", activation_fn_kwargs={"k": 2}))
    assert sae.activation == "topk" and sae.k == 2


@pytest.mark.parametrize("cfg, weights", [(dict(architecture="gated"), WEIGHTS), (dict(normalize_activations="other"), WEIGHTS), (dict(architecture="jumprelu"), WEIGHTS), ({}, WEIGHTS | {"extra": torch.ones(1)}),
                                          (dict(reshape_activations="hook_z"), WEIGHTS), (dict(normalize_activations="expected_average_only_in"), WEIGHTS), (dict(architecture="topk"), WEIGHTS)], ids=str)
def test_saelens_folders_that_are_not_read(tmp_path, cfg, weights):
    with pytest.raises(ScopeError):
        load_saelens(folder_of(tmp_path / "a", weights, **cfg))
    (tmp_path / "a" / "cfg.json").write_text("{")
    with pytest.raises(ScopeError, match="Not a SAELens folder"):
        load_saelens(tmp_path / "a")


def test_saelens_hooks_and_models(tmp_path):
    path = folder_of(tmp_path / "a", WEIGHTS)
    with pytest.raises(ScopeError, match="does not fit"):
        load_saelens(path, Scope(tiny("llama")))
    (path / "cfg.json").write_text(json.dumps(dict(hook_name="blocks.0.attn.hook_z")))
    with pytest.raises(ScopeError, match="No site for the hook"):
        load_saelens(path)


def test_a_setting_that_is_left_out_is_what_saelens_takes(tmp_path):
    for cfg in ({}, dict(normalize_activations=None), dict(normalize_activations=False, activation_fn_str="relu")):
        sae = load_saelens(folder_of(tmp_path / "a", WEIGHTS, **cfg))
        torch.testing.assert_close(sae.reconstruct(X), by_hand(X, WEIGHTS, "standard", True, "none"), rtol=1e-3, atol=1e-3)
    averaged = load_saelens(folder_of(tmp_path / "a", WEIGHTS, normalize_activations=True), mean_norm=2.0)
    torch.testing.assert_close(averaged.reconstruct(X), by_hand(X, WEIGHTS, "standard", True, "expected_average_only_in", 2.0), rtol=1e-3, atol=1e-3)
    older = folder_of(tmp_path / "a", WEIGHTS | {"scaling_factor": torch.ones(9)})
    (older / "cfg.json").write_text(json.dumps(dict(hook_point="blocks.2.hook_mlp_out", dtype="torch.float16")))
    assert (load_saelens(older).site, load_saelens(older).layer) == ("mlp_out", 2)


def test_rows_of_zeros_do_not_change_which_codes_are_largest(tmp_path):
    weights = WEIGHTS | {"W_dec": WEIGHTS["W_dec"] * (torch.arange(9) != 4)[:, None]}
    sae = load_saelens(folder_of(tmp_path / "a", weights, architecture="topk", k=3, rescale_acts_by_decoder_norm=True))
    lengths = weights["W_dec"].norm(dim=-1)
    top = (((X - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * lengths).topk(3, dim=-1)
    z = torch.zeros(len(X), 9).scatter(-1, top.indices, top.values.relu()) / lengths.where(lengths > 0, 1)
    torch.testing.assert_close(sae.reconstruct(X), z @ weights["W_dec"] + weights["b_dec"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cfg", [dict(activation_fn="tanh-relu"), dict(apply_b_dec_to_input="false"), dict(hook_head_index=2), dict(hook_name_out="blocks.1.hook_mlp_out"), dict(d_sae=8), dict(metadata=[1]), dict(architecture=["standard"]),
                                 dict(metadata=dict(apply_b_dec_to_input=False)), dict(architecture="topk", k="three"), dict(architecture="topk", k=3, activation_fn_kwargs=dict(k=4)), dict(architecture="transcoder"), dict(architecture="Standard")], ids=str)
def test_settings_that_are_not_read_here(tmp_path, cfg):
    path = folder_of(tmp_path / "a", WEIGHTS)
    (path / "cfg.json").write_text(json.dumps(dict(hook_name="blocks.1.hook_resid_post") | cfg))
    with pytest.raises(ScopeError):
        load_saelens(path)


@pytest.mark.parametrize("size", [0, 7, 60, 300, 700])
def test_a_file_that_is_cut_short(tmp_path, size):
    path = folder_of(tmp_path / "a", WEIGHTS) / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ScopeError, match="Not a SAELens folder"):
        load_saelens(path.parent)
