"A small model and some awkward texts for the tests of corpus jobs."
from pathlib import Path

import numpy as np
import pytest

from architectures import tiny_reader
from tokenscope.core.scope import load

WORDS = "the cat sat on a mat and every human being is born free".split()


@pytest.fixture(scope="module")
def scope():
    return load()


@pytest.fixture(scope="module")
def small():
    "A tiny llama that takes the default tokenizer's ids, with a context of 64."
    return tiny_reader("llama")


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    made = [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(60)]
    return [*made[:20], "", *made[20:], "x", " ".join(WORDS * 20), "bad \ud800 surrogate \x00 é 👩‍👩‍👧"]


def bytes_of(folder) -> dict:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if not p.name.startswith(".")}
