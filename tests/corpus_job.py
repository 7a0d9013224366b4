"The corpus job that the tests kill: a tiny model, texts, and one function. A process that imports this has run no forward."
import os
import random
import signal
import sys

import torch
from transformers import AutoTokenizer

from architectures import tiny
from tokenscope.core.default_model import default_model
from tokenscope.core.reader import CorpusTask, read_batch
from tokenscope.core.scope import Scope
from tokenscope.corpus.corpus import run_corpus

torch.set_num_threads(1)
WORDS = "the cat sat on a mat and every human being is born free".split()
rng = random.Random(0)
TEXTS = [" ".join(rng.choices(WORDS, k=rng.randint(0, 60))) for _ in range(400)]
READING = CorpusTask(("surprisal", "entropy"), ("resid_post",), [0, 2])

_tokenizer = AutoTokenizer.from_pretrained(default_model())
SCOPE = Scope(tiny("llama", vocab_size=len(_tokenizer), max_position_embeddings=48), _tokenizer)


def reading(scope, batch):
    "What the job computes; a worker of rank 1 may die in the middle."
    if "die" in sys.argv and os.environ.get("RANK") == "1" and rng.random() < 0.2:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_batch(scope, batch, READING)


def job(folder):
    return run_corpus(SCOPE, TEXTS, folder, reader=reading, shard_characters=2_000, batch_tokens=256)
