"Models and adapters from folders: complete, or refused with the reason."
import json
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from architectures import SMALL, tiny
from tokenscope.core.loading import model_from
from tokenscope.core.scope import load
from tokenscope.text.names import BadArgument, BadFile, ScopeError, Unavailable

IDS = [5, 9, 17]


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def adapter_on(base, path, **more):
    "A folder with a low-rank adapter, and the logits of base and adapter."
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    tuned = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), peft.LoraConfig(r=2, **{"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"} | more))
    tuned.save_pretrained(path)
    with torch.no_grad():
        return path, tuned.eval()(input_ids=torch.tensor([IDS])).logits


def test_number_types(folder):
    for said in (dict(torch_dtype=torch.float16), dict(torch_dtype="float16"), dict(dtype="float16"), dict(dtype="torch.float16"), dict(dtype=torch.float16), dict(dtype=torch.float16, device=torch.device("cpu"))):
        assert load(folder, **{"device": "cpu"} | said).dtype == torch.float16, said
    assert load(folder, device=torch.device("cpu")).dtype == torch.float32
    for wrong in (dict(dtype="float17"), dict(dtype="int8"), dict(dtype=torch.int8), dict(torch_dtype="Tensor"), dict(dtype="float32", torch_dtype="float16"), dict(device="cpu", device_map="auto"), dict(device="nowhere"), dict(device="meta")):
        with pytest.raises(BadArgument):
            load(folder, **wrong)


@pytest.mark.parametrize("settings", [dict(bogus=1), dict(attn_implementation="none"), dict(device_map="nowhere"), dict(device_map=5), dict(quantization_config=dict(a=1)), dict(quantization_config=5)], ids=str)
def test_settings_that_mean_nothing(folder, settings):
    with pytest.raises((BadArgument, Unavailable)):
        load(folder, **settings)


def test_settings_that_mean_something(folder):
    right = tiny("llama")(input_ids=torch.tensor([IDS])).logits
    for settings in (dict(device_map="auto"), dict(device_map={"": "cpu"}), dict(attn_implementation="eager"), dict(local_files_only=True), dict(output_loading_info=False)):
        torch.testing.assert_close(load(folder, **settings).logits(IDS), right, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_held_is_not_changed():
    model = tiny("llama")
    for wrong in (dict(dtype="float16"), dict(device="cpu"), dict(attn_implementation="eager")):
        with pytest.raises(BadArgument, match="taken as it is"):
            load(model, **wrong)


def test_a_quantiser_that_is_not_installed(folder):
    pytest.importorskip("transformers")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        from transformers import BitsAndBytesConfig
        with pytest.raises(Unavailable, match="A package is missing"):
            load(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.parametrize("size", [0, 5, 200, 3000, -1])
def test_weights_cut_short(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BadFile, match="cannot be read"):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "nothing"}', '{"model_type": "llama", "hidden_size": "x"}', '{"model_type": "llama", "hidden_size": 64}'])
def test_configs_that_are_broken(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(BadFile):
        load(folder)


def test_parts_that_are_missing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadFile, match="cannot be read"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(Unavailable, match="No such model"):
        load(folder)
    tiny("llama").model.save_pretrained(folder)  # the body alone, whose head would be random
    with pytest.raises(BadFile, match="Weights are missing: 1 .*lm_head"):
        load(folder)
    for nothing in (tmp_path / "none", folder / "model.safetensors", "", "a/b/c", "what is this?"):
        with pytest.raises(Unavailable, match="No such model"):
            load(str(nothing))


def test_tied_heads_are_not_missing(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)).eval()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path).logits(IDS), model(input_ids=torch.tensor([IDS])).logits, rtol=1e-4, atol=1e-4)


def test_gguf_files_cut_short(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", torch.randn(30, 8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = (tmp_path / "m.gguf").read_bytes()
    for size in (0, 3, 20, 100, len(whole) - 40, len(whole)):  # whole, it is still no model
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(BadFile):
            load(tmp_path / "cut.gguf")
    with pytest.raises(BadFile, match="No such GGUF file"):
        load(tmp_path / "other.gguf")


@pytest.mark.parametrize("more", [{}, dict(target_modules="all-linear"), dict(modules_to_save=["lm_head"])], ids=str)
def test_adapters_come_with_their_base(folder, tmp_path, more):
    path, right = adapter_on(folder, tmp_path / "adapter", **more)
    torch.testing.assert_close(load(path).logits(IDS), right, rtol=1e-4, atol=1e-4)
    assert load(path, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    assert load(path).tokenizer is None


def test_an_adapter_beside_a_config_without_weights(folder, tmp_path):
    path, right = adapter_on(folder, tmp_path / "adapter")
    (path / "config.json").write_text((folder / "config.json").read_text())
    torch.testing.assert_close(load(path).logits(IDS), right, rtol=1e-4, atol=1e-4)


@pytest.mark.model
def test_the_tokenizer_of_an_adapter_or_of_its_base(tmp_path):
    from tokenscope.core.default_model import default_model
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    tiny("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    path, _ = adapter_on(tmp_path / "base", tmp_path / "adapter")
    assert len(load(path).tokenizer) == len(tokenizer)
    tokenizer.add_tokens(["<own>"])
    tokenizer.save_pretrained(path)
    assert "<own>" in load(path).tokenizer.get_vocab()
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(BadFile, match="The tokenizer cannot be read"):
        load(path)


def test_adapters_that_do_not_fit(folder, tmp_path, monkeypatch):
    path, _ = adapter_on(folder, tmp_path / "adapter")
    file = path / "adapter_config.json"
    good, weights = file.read_text(), (path / "adapter_model.safetensors").read_bytes()

    def refused(kind, match):
        with pytest.raises(kind, match=match):
            load(path)

    for text in ("{", "[]", "{}", json.dumps(json.loads(good) | {"base_model_name_or_path": None})):
        file.write_text(text)
        refused(BadFile, "Not an adapter's config")
    file.write_text(json.dumps(json.loads(good) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    refused(Unavailable, "No such model")
    for change in ({"peft_type": "NOTHING"}, {"target_modules": ["nowhere"]}, {"r": 4}):
        file.write_text(json.dumps(json.loads(good) | change))
        refused(BadFile, "The adapter|Weights are missing")
    file.write_text(json.dumps(json.loads(good) | {"target_modules": ["q_proj", "down_proj", "v_proj"]}))
    refused(BadFile, "Weights are missing: .* of the adapter")
    file.write_text(json.dumps(json.loads(good) | {"target_modules": ["q_proj"]}))
    refused(BadFile, "The adapter is for another base")
    file.write_text(good)
    (path / "adapter_model.safetensors").write_bytes(weights[:500])
    refused(BadFile, "The adapter cannot be put")
    (path / "adapter_model.safetensors").unlink()
    refused(BadFile, "The adapter cannot be put")
    monkeypatch.setattr("transformers.utils.is_peft_available", lambda *a, **k: False)
    refused(Unavailable, "The package `peft` is not installed")


def test_a_silent_hub_is_not_waited_for(monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    with pytest.raises(Unavailable, match="No such model: 'nobody/nothing'.*does not answer"):
        load("nobody/nothing")
    assert time.perf_counter() - start < 10
    with pytest.raises(ScopeError):
        model_from("nobody/nothing", dict(local_files_only=True))


def test_an_adapter_of_the_hub(folder, tmp_path, monkeypatch):
    "Without a config.json under its name, an adapter's config is looked for."
    path, right = adapter_on(folder, tmp_path / "adapter")
    monkeypatch.setattr("tokenscope.core.loading._settings_offline", lambda name, kwargs: kwargs)
    monkeypatch.setattr("transformers.utils.cached_file", lambda *a, **k: None)
    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda *a, **k: str(path / "adapter_config.json"))
    asked = []
    monkeypatch.setattr("tokenscope.core.loading._with_adapter", lambda name, file, kwargs: asked.append((name, Path(file).name)) or tiny("llama"))
    model_from("someone/adapter", {})
    assert asked == [("someone/adapter", "adapter_config.json")] and right.ndim == 3
