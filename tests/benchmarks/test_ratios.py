"What reading and editing cost, as ratios to a plain forward of the same process."
import pytest
import torch

from measure import peak_mib, ratios, show
from tokenscope.core.edit import Edit
from tokenscope.core.scope import load

@pytest.fixture(scope="module")
def scope():
    torch.set_num_threads(1)
    return load()


@torch.no_grad()
def test_reading(scope):
    ids = torch.randint(100, 40_000, (4, 128), generator=torch.Generator().manual_seed(0))
    last = lambda: scope.read(ids, "logits", positions=-1)
    show("reading 4 x 128 tokens, ratio to a plain forward", ratios(lambda: scope.model(ids, use_cache=False), {
        "resid_post, all layers": lambda: scope.read(ids, "resid_post"),
        "resid_post, layer 9 of 30": lambda: scope.read(ids, "resid_post", layers=9),
        "pattern, layer 9": lambda: scope.read(ids, "pattern", layers=9),
        "logits of the last token": last,
        "transformers' output_hidden_states": lambda: scope.model(ids, use_cache=False, output_hidden_states=True),
        "surprisal of every token": lambda: scope.logprobs(ids),
    }))


@torch.no_grad()
def test_steering_in_generate(scope):
    direction = torch.randn(scope.d_model, generator=torch.Generator().manual_seed(0))
    speak = lambda: scope.generate("The capital of France is", max_new_tokens=24, eos_token_id=None)

    def edited(*edits):
        def run():
            with scope.edit(*edits):
                speak()
        return run

    show("generating 24 tokens, ratio to no edit", ratios(speak, {
        "add a direction at layer 12": edited(Edit("resid_post", layers=12, add=direction)),
        "a bias on the first key, all layers": edited(Edit("attn_scores", add=0.7, keys=0)),
        "after the block (off)": speak,
    }))


@torch.no_grad()
def test_logit_lens(scope):
    ids = torch.randint(100, 40_000, (1, 64), generator=torch.Generator().manual_seed(0))

    def by_hand():
        states = scope.model(ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
        return torch.stack([scope.unembed(h, normed=i == 29) for i, h in enumerate(states)]).softmax(-1).topk(3)

    variants = {"30 layers, all positions": lambda: scope.logit_lens(ids), "30 layers, last position": lambda: scope.logit_lens(ids, positions=-1), "all at once, by hand": by_hand}
    show("logit lens of 64 tokens, ratio to a plain forward", ratios(lambda: scope.model(ids, use_cache=False), variants))
    show("logit lens of 64 tokens, peak memory in MiB", {name: peak_mib(fn) for name, fn in variants.items()})
