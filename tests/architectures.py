"Tiny random models of many families, for the tests that go over all of them. True Hugging Face classes, small configs."
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from tokenscope.core.default_model import default_model
from tokenscope.core.scope import Scope

VOCAB = 99
SMALL = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, attention_dropout=0.0)
EXPERTS = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)

# family -> what it needs beside SMALL
FAMILIES = {
    "llama": {}, "mistral": dict(sliding_window=4), "qwen2": {}, "qwen3": dict(head_dim=8), "phi3": {}, "granite": dict(residual_multiplier=0.5, logits_scaling=2.0),
    "gemma2": dict(head_dim=8, sliding_window=4), "gemma3_text": dict(head_dim=8, sliding_window=4), "olmo2": {}, "stablelm": {}, "glm4": dict(head_dim=8),
    "cohere2": dict(sliding_window=4), "starcoder2": {}, "smollm3": {}, "nemotron": {},
    "gpt2": {}, "gpt_neox": {}, "opt": dict(ffn_dim=48, word_embed_proj_dim=32), "falcon": dict(new_decoder_architecture=False, alibi=False),
    "bloom": {}, "mixtral": EXPERTS, "olmoe": EXPERTS, "qwen3_moe": dict(head_dim=8, **EXPERTS), "gpt_oss": dict(head_dim=8, sliding_window=4, **EXPERTS),
}


def tiny(family: str, trainable: bool | None = None, **more):
    """A small random model of one family, in evaluation mode, always the same. Every other family keeps weights that require
    gradients, as transformers returns them; `trainable` forces either."""
    torch.manual_seed(0)
    trainable = ALL.index(family) % 2 == 0 if trainable is None else trainable
    if family == "llava":
        return tiny_llava().requires_grad_(trainable)
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family], **more})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # an initial model is nearly linear; larger weights make every part matter
        for p in model.parameters():
            if p.ndim >= 2:
                p.mul_(3)
    return model.eval().requires_grad_(trainable)


def tiny_reader(family: str, **more) -> Scope:
    "A tiny model that takes the default model's tokens; only the tokenizer of that one is loaded."
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    return Scope(tiny(family, vocab_size=len(tokenizer), **more), tokenizer)


def tiny_llava():
    "The text stack of a vision-language model."
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SMALL), image_token_index=98)
    return AutoModelForImageTextToText.from_config(config).eval()


ALL = [*FAMILIES, "llava"]
CLOSED = ("falcon", "bloom")  # their attention does not go through transformers' attention interface
