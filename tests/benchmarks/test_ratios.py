"""What reading and editing cost, as ratios to a plain forward of the same process. Printed, never asserted.

One thread, process CPU time, one warm-up, interleaved rounds in which every variant runs once; the median of the rounds' ratios."""
import statistics
import time

import pytest
import torch

from tokenscope.core.edit import Edit
from tokenscope.core.scope import load

ROUNDS = 7


@pytest.fixture(scope="module")
def scope():
    torch.set_num_threads(1)
    return load()


def ratios(plain, variants: dict) -> dict:
    "Median ratio of each variant's CPU time to the plain one's, over interleaved rounds."
    every = {"plain": plain, **variants}
    seconds = {name: [] for name in every}
    for fn in every.values():
        fn()
    for _ in range(ROUNDS):
        for name, fn in every.items():
            begun = time.process_time()
            fn()
            seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(s / p for s, p in zip(seconds[name], seconds["plain"])) for name in variants}


def show(title, found):
    print(f"\n{title}")
    for name, ratio in found.items():
        print(f"  {name:42} {ratio:.2f}")


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
