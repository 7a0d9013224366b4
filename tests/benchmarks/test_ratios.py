"What reading, editing and the logit lens cost, as ratios to a plain forward of the same process, beside the peers that are installed."
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch

from measure import ROUNDS, SMOKE, memory_table, ratio_table, show
from peers import PLAIN, peers
from tokenscope.core.edit import Edit
from tokenscope.core.scope import load

SITES = ["resid_pre", "resid_mid", "resid_post", "q", "k", "v", "z", "attn_scores", "pattern", "attn_out", "mlp_post", "mlp_out"]


@pytest.fixture(scope="module")
def scope():
    torch.set_num_threads(1)
    return load()


@pytest.fixture(scope="module")
def others(scope):
    return peers(scope)


@pytest.fixture
def ids():
    return torch.randint(100, 40_000, (2, 16) if SMOKE else (4, 128), generator=torch.Generator().manual_seed(0))


def can(others, name):
    return {who: getattr(peer, name) for who, peer in others.items() if hasattr(peer, name)}


@torch.no_grad()
def test_reading(scope, others, ids):
    every = scope.read(ids, "resid_post")["resid_post"]
    variants = {"tokenscope": {
        "resid_post, all layers": lambda: scope.read(ids, "resid_post"),
        "resid_post, layer 9 of 30": lambda: scope.read(ids, "resid_post", layers=9),
        "pattern, layer 9": lambda: scope.read(ids, "pattern", layers=9),
        "logits of the last token": lambda: scope.read(ids, "logits", positions=-1),
        "surprisal of every token": lambda: scope.logprobs(ids),
    }, "transformers": {"resid_post, all layers": lambda: scope.model(ids, use_cache=False, output_hidden_states=True)}}
    for who, read in can(others, "all_layers").items():
        torch.testing.assert_close(read(ids), every, atol=5e-3, rtol=1e-3)
        variants[who] = {"resid_post, all layers": lambda read=read: read(ids)}
    for who, read in can(others, "one_layer").items():
        torch.testing.assert_close(read(ids, 9), every[:, 9:10], atol=5e-3, rtol=1e-3)
        variants[who]["resid_post, layer 9 of 30"] = lambda read=read: read(ids, 9)
    ratio_table(f"Reading {len(ids)} x {len(ids[0])} tokens", lambda: scope.model(ids, use_cache=False), variants, {"resid_post, all layers": 0.85, "resid_post, layer 9 of 30": 0.35})


@torch.no_grad()
def test_reading_everything(scope, others, ids):
    ours = scope.read(ids, SITES)
    variants = {"tokenscope": {"12 sites, all layers": lambda: scope.read(ids, SITES)}}
    if "TransformerLens" in others:
        peer = others["TransformerLens"]
        theirs = peer.sites(ids, SITES)
        for site in ("resid_post", "pattern", "attn_out"):
            torch.testing.assert_close(theirs[site, 9], ours[site][:, 9], atol=5e-3, rtol=1e-3)
        variants["TransformerLens"] = {"12 sites, all layers": lambda: peer.sites(ids, SITES), "everything it has": lambda: peer.everything(ids)}
    ratio_table(f"Reading everything of {len(ids)} x {len(ids[0])} tokens", lambda: scope.model(ids, use_cache=False), variants)
    memory_table(f"Reading everything of {len(ids)} x {len(ids[0])} tokens", variants)


@torch.no_grad()
def test_steering_in_generate(scope, others):
    ids = scope.tokenizer("The capital of France is", return_tensors="pt").input_ids
    direction = 3 * torch.randn(scope.d_model, generator=torch.Generator().manual_seed(0))
    edit = Edit("resid_post", layers=12, add=direction)
    speak = lambda: scope.model.generate(ids, attention_mask=torch.ones_like(ids), **PLAIN)

    def edited(*edits):
        with scope.edit(*edits):
            return speak()

    said = edited(edit)
    assert not torch.equal(said, speak())
    variants = {"tokenscope": {"a direction at layer 12, on": lambda: edited(edit), "off": speak, "a bias on the first key, all layers": lambda: edited(Edit("attn_scores", add=0.7, keys=0))}}
    for who, speak_so in can(others, "steered").items():
        assert torch.equal(speak_so(ids, 12, direction), said), who
        variants[who] = {"a direction at layer 12, on": lambda speak_so=speak_so: speak_so(ids, 12, direction)}
    for who, unsteered in can(others, "unsteered").items():
        variants[who]["off"] = lambda unsteered=unsteered: unsteered(ids)
    ratio_table("Generating 24 tokens", speak, variants, {"a direction at layer 12, on": 1.02, "off": 1.0}, "ratio to a plain generate", 3 * ROUNDS if ROUNDS > 1 else 1)  # the aims lie within the noise of five rounds


@torch.no_grad()
def test_logit_lens(scope, others, ids):
    ids = ids[:1, :64]
    words = lambda positions: scope.logit_lens(ids, positions=positions, k=3)

    def by_hand():
        states = scope.model(ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
        return torch.stack([scope.unembed(h, normed=i == scope.n_layers - 1) for i, h in enumerate(states)]).softmax(-1).topk(3)

    variants = {"tokenscope": {"30 layers, all positions": lambda: words("all"), "30 layers, last position": lambda: words(-1)}, "by hand": {"30 layers, all positions": by_hand}}
    best = by_hand().indices[..., 0, :, 0]
    for who, lens in can(others, "lens").items():
        for positions, named in ((None, "all positions"), (-1, "last position")):
            same = (lens(ids, positions).reshape(scope.n_layers, -1, 3)[..., 0] == (best if positions is None else best[:, -1:])).float().mean()
            assert same > 0.98, (who, positions, same)  # eager attention moves a near tie now and then
            variants.setdefault(who, {})[f"30 layers, {named}"] = lambda lens=lens, positions=positions: lens(ids, positions)
    ratio_table(f"Logit lens of {ids.numel()} tokens", lambda: scope.model(ids, use_cache=False), variants)
    memory_table(f"Logit lens of {ids.numel()} tokens", variants)


def test_import():
    def seconds(code):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begun

    show("Importing", "seconds above a bare interpreter", {who: {"import": statistics.median(seconds(f"import {module}") - seconds("pass") for _ in range(3))}
         for who, module in {"tokenscope": "tokenscope", "TransformerLens": "transformer_lens", "nnsight": "nnsight", "pyvene": "pyvene"}.items() if find_spec(module)},
         {"import": 0.3})
