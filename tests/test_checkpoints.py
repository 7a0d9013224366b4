"Checkpoints read one tensor at a time, and the base that is tuned twice."
import json

import pytest
import torch
from safetensors.torch import save_file

from architectures import tiny
from tokenscope.corpus.checkpoints import layer_matrices, open_checkpoint, paired_matrices
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.learn.shipped import SHIPPED
from tokenscope.learn.tuned_pairs import grpo_loss, pretrain_adder, tune_adder
from tokenscope.lenses.rlvr_geometry import low_mask, weight_drift


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_kind_of_checkpoint_reads_the_same(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    save_file(model.state_dict(), tmp_path / "one.safetensors")
    kinds = [open_checkpoint(x) for x in (model, Scope(model), model.state_dict(), tmp_path / "shards", str(tmp_path / "one.safetensors"))]
    for name, weight in model.state_dict().items():
        assert all(torch.equal(c.read(name), weight) and c.shapes[name] == tuple(weight.shape) for c in kinds)
    assert open_checkpoint(kinds[0]) is kinds[0] and torch.equal(kinds[3].read("model.layers.0.mlp.up_proj.weight", 2), model.model.layers[0].mlp.up_proj.weight[2])


def test_names_without_their_wrappers():
    model = tiny("llama")
    inner, outer = open_checkpoint(model.model), open_checkpoint(model)
    assert [(a, b) for _, a, b in paired_matrices(inner, outer, "*mlp*", layers=[0, -1])] == [(f"layers.{i}.mlp.{m}_proj.weight", f"model.layers.{i}.mlp.{m}_proj.weight") for i in (0, 2) for m in ("down", "gate", "up")]
    odd = open_checkpoint({"emb.weight": rand(4, 4), "h.0.bias": rand(4), "h.0.conv.weight": rand(4, 1, 3), "h.10.w.weight": rand(4, 4), "h.2.w.weight": rand(4, 4)})
    assert [key[0] for key in layer_matrices(odd)] == [2, 10]


def test_bad_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytest.bin").write_bytes(b"")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/model.safetensors.index.json").write_text("[]")
    for path, message in ((tmp_path, "A damaged safetensors file"), (tmp_path / "pickled", "No safetensors there"), (tmp_path / "gone", "Shards are missing"), (tmp_path / "odd", "Not an index of shards")):
        with pytest.raises(ScopeError, match=message):
            open_checkpoint(path)


def test_equal_rewards_teach_nothing():
    logp = rand(4, 6, 3).requires_grad_()
    for reward in (0.0, 1.0):
        grpo_loss(logp, logp.detach(), torch.full((4, 6), reward)).backward()
        assert not logp.grad.any()
    reward = torch.eye(6)[:4]
    grpo_loss(logp, logp.detach(), reward).backward()
    assert (logp.grad.sum(2)[reward == 1] < 0).all() and (logp.grad.sum(2)[reward == 0] > 0).all()


def test_only_the_kept_weights_are_trained():
    base = pretrain_adder(0, steps=2)
    name = "model.layers.0.mlp.up_proj.weight"
    mask = low_mask(base.state_dict()[name], 0.25)
    for method in ("rl", "sft"):
        tuned = tune_adder(base, method, steps=3, keep={name: mask}).state_dict()
        changed = {n: tuned[n] != p for n, p in base.state_dict().items()}
        assert not (changed[name] & ~mask).any() and not any(c.any() for n, c in changed.items() if n != name)
        assert changed[name].any() or method == "rl"  # before it has learned anything, no sample may be right
    assert all(torch.equal(p, p.bfloat16().float()) for p in base.state_dict().values())


def test_the_shipped_checkpoints():
    files = [SHIPPED[f"rlvr_{w}"].path for w in ("base", "rl", "sft")]
    assert sum(f.stat().st_size for f in files) < 2_000_000
    report = weight_drift(*files[:2])
    assert len(report.table) == 14 and report.table.visible.between(0.001, 0.999).all() and set(open_checkpoint(files[0]).homes.values()) == {files[0]}
