"Edits and directions in files: what comes back is what was kept, and what does not fit is refused."
import json
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from architectures import tiny
from tokenscope.change.control_vectors import load_control_vector, save_control_vector
from tokenscope.change.directions import Directions
from tokenscope.core.edit import Edit
from tokenscope.change.edit_files import data_hash, edit_file_header, load_edits, save_edits
from tokenscope.change.moves import AddKeepingNorm, Move, ProjectOut, TurnTowards
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope

IDS = torch.randint(3, 98, (2, 9), generator=torch.Generator().manual_seed(0))
VECTOR = torch.linspace(-1, 1, 32)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def scope(request):
    return Scope(tiny(request.param))


EDITS = {
    "add": [Edit("resid_post", layers=[0, 2], add=VECTOR)], "scale": [Edit("resid_mid", layers=1, scale=1 + VECTOR / 10, positions="last")],
    "set": [Edit("mlp_out", layers=-1, set=0.0, positions=[0, -2])], "slice": [Edit("resid_post", layers=slice(0, 2), add=0.5, positions=slice(1, None, 2))],
    "heads": [Edit("z", layers=0, scale=0.0, heads=[1, 3])], "keys": [Edit("attn_scores", layers=1, add=2.0, keys=0, heads=(0,))], "embed": [Edit("embed", add=VECTOR)],
    "when": [Edit("resid_post", layers=1, add=VECTOR, when="generated")], "norm": [Edit("resid_post", layers=1, fn=AddKeepingNorm(VECTOR))],
    "turn": [Edit("resid_post", layers=1, fn=TurnTowards(VECTOR, 20.0))], "project": [Edit("resid_post", layers=0, fn=ProjectOut(torch.eye(32)[:3], VECTOR))],
    "same tensor twice": [Edit("resid_post", layers=i, add=VECTOR) for i in (0, 1)], "nothing": [],
}


@pytest.mark.parametrize("name", EDITS)
def test_out_and_in_again(scope, name, tmp_path):
    file = save_edits(EDITS[name], tmp_path / "e.safetensors", scope, technique=name)
    found = []
    for edits in (EDITS[name], load_edits(file, scope)):
        with scope.edit(*edits):
            found.append((scope.model(IDS).logits, scope.generate(IDS[:1].tolist(), max_new_tokens=3, eos_token_id=None)))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]
    assert edit_file_header(file)["technique"] == name


def test_half_precision_stays(tmp_path):
    scope = Scope(tiny("llama").to(torch.bfloat16))
    [again] = load_edits(save_edits([Edit("resid_post", add=VECTOR.bfloat16())], tmp_path / "e", scope), scope)
    assert again.add.dtype == torch.bfloat16 and torch.equal(again.add, VECTOR.bfloat16())


def test_another_model_is_refused_and_a_sibling_is_warned_of(tmp_path):
    wide, small = Scope(tiny("llama", hidden_size=64)), Scope(tiny("llama"))
    file = save_edits(EDITS["add"], tmp_path / "e", small)
    with pytest.raises(ScopeError, match="do not fit this model.*32.*64"):
        load_edits(file, wide)
    small.model.config._name_or_path = "somewhere/a-sibling"
    with pytest.warns(UserWarning, match="a-sibling"):
        load_edits(file, small)


@dataclass(frozen=True, eq=False)
class Mine(Move):
    "A move of a user."
    by: float

    def __call__(self, h): return h * self.by


def test_moves_from_elsewhere(scope, tmp_path):
    file = save_edits([Edit("resid_post", layers=0, fn=Mine(2.0))], tmp_path / "e", scope)
    with pytest.raises(ScopeError, match="No such move"):
        load_edits(file, scope)
    assert load_edits(file, scope, moves=[Mine])[0].fn.by == 2
    with pytest.raises(ScopeError, match="Cannot be kept"):
        save_edits([Edit("resid_post", fn=lambda h: h)], tmp_path / "f", scope)
    assert not list(tmp_path.glob("*f*"))


@pytest.mark.parametrize("name", ["os:system", "text.names:ScopeError", "change.moves:torch", "..change.moves:Move", "subprocess:Popen", "core.nothing:Move"])
def test_a_file_cannot_name_anything_else(scope, name, tmp_path):
    file = save_edits(EDITS["norm"], tmp_path / "e", scope)
    head = edit_file_header(file)
    head["edits"][0]["value"]["move"] = name
    save_file(load_file(file), str(tmp_path / "bad"), metadata={"tokenscope_edits": json.dumps(head)})
    with pytest.raises(ScopeError, match="No such move"):
        load_edits(tmp_path / "bad", scope)


def test_damaged_files(scope, tmp_path):
    file = save_edits(EDITS["add"], tmp_path / "e", scope)
    head = edit_file_header(file)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:40])
    save_file({}, str(tmp_path / "empty"), metadata={"tokenscope_edits": json.dumps(head)})
    save_file({"t0": torch.full((32,), float("nan"))}, str(tmp_path / "nan"), metadata={"tokenscope_edits": json.dumps(head)})
    save_file({"t0": VECTOR}, str(tmp_path / "headless"))
    for bad in ("cut", "empty", "nan", "headless", "missing"):
        with pytest.raises(ScopeError):
            load_edits(tmp_path / bad, scope)


def test_data_hash():
    assert data_hash([[1, 2], [3]]) == data_hash([[1, 2], [3]]) != data_hash([[1], [2, 3]])


def test_control_vectors(tmp_path):
    made = Directions(torch.randn(2, 32), [1, 2], torch.ones(2))
    file = save_control_vector(made, tmp_path / "v.gguf", "llama")
    again = load_control_vector(file, Scope(tiny("llama")))
    assert torch.equal(again.vectors, made.vectors) and again.layers == [1, 2] and again.meta["model"] == "llama"
    with pytest.raises(ScopeError, match="does not fit"):
        load_control_vector(file, Scope(tiny("llama", hidden_size=64)))
    with pytest.raises(ScopeError, match="does not fit"):
        load_control_vector(file, Scope(tiny("llama", num_hidden_layers=2)))
    with pytest.raises(ScopeError, match="residual stream"):
        save_control_vector(Directions(torch.randn(1, 48), [1], torch.ones(1), site="mlp_post"), tmp_path / "w.gguf", "llama")
    with pytest.raises(ScopeError, match="No length to measure"):
        again.edit(1, 1.0, unit="norm")


def test_control_vector_as_repeng_writes_it(tmp_path):
    "Layers in any order, as `ControlVector.export_gguf` leaves them."
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "r.gguf"), "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", 2)
    vectors = torch.randn(3, 32).numpy()
    for layer in (2, 1):
        writer.add_tensor(f"direction.{layer}", vectors[layer])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_control_vector(tmp_path / "r.gguf")
    assert found.layers == [1, 2] and torch.equal(found.at(2), torch.from_numpy(vectors[2])) and found.meta["model"] == "mistral"


def gguf_of(path, kind="controlvector", **tensors):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_no_control_vector_for_layer_zero(tmp_path):
    with pytest.raises(ScopeError, match="No control vector for layer 0"):
        save_control_vector(Directions(torch.randn(2, 32), [0, 1], torch.ones(2)), tmp_path / "v.gguf", "llama")
    assert not list(tmp_path.iterdir())


def test_half_precision_control_vector(tmp_path):
    vector = torch.randn(8).half()
    found = load_control_vector(gguf_of(tmp_path / "h.gguf", **{"direction.3": vector}))
    assert found.layers == [3] and torch.equal(found.at(3), vector.float()) and found.vectors.dtype == torch.float32


@pytest.mark.parametrize("tensors", [{}, {"direction.0": torch.ones(8)}, {"direction.1": torch.ones(8), "bias": torch.ones(8)}, {"direction.1": torch.ones(8), "direction.2": torch.ones(9)}, {"direction.1": torch.ones(2, 8)},
                                     {"direction.one": torch.ones(8)}, {"direction.-1": torch.ones(8)}, {"direction.1": torch.ones(8, dtype=torch.int32)}, {"direction.1": torch.ones(8), "direction.1.weight": torch.ones(8)}], ids=lambda t: " ".join(t) or "none")
def test_files_that_hold_more_or_less_than_directions(tmp_path, tensors):
    with pytest.raises(ScopeError, match="Not a control vector"):
        load_control_vector(gguf_of(tmp_path / "w.gguf", **tensors))
    if tensors:
        with pytest.raises(ScopeError, match="Not a control vector"):
            load_control_vector(gguf_of(tmp_path / "m.gguf", "llama", **{"direction.1": torch.ones(8)}))


def test_control_vectors_cut_short(tmp_path):
    whole = gguf_of(tmp_path / "w.gguf", **{"direction.1": torch.ones(64), "direction.2": torch.ones(64)}).read_bytes()
    for size in [*range(0, len(whole), 37), len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ScopeError, match="Not a control vector"):
            load_control_vector(tmp_path / "cut.gguf")
