"A corpus job to be killed: run alone (`run FOLDER`), killed at random (`kill FOLDER N`), or with a worker that dies (`die FOLDER`)."
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from architectures import tiny
from tokenscope.corpus.corpus import Corpus, run_corpus
from tokenscope.core.reader import CorpusTask, read_batch
from tokenscope.core.default_model import default_model
from tokenscope.core.scope import Scope
from transformers import AutoTokenizer

torch.set_num_threads(1)  # a forked process has no other threads
WORDS = "the cat sat on a mat and every human being is born free".split()
rng = random.Random(0)
TEXTS = [" ".join(rng.choices(WORDS, k=rng.randint(0, 60))) for _ in range(400)]
READING = CorpusTask(("surprisal", "entropy"), ("resid_post",), [0, 2])


def reading(scope, batch):
    "What the job computes; a worker of rank 1 may die in the middle."
    if "die" in sys.argv and os.environ.get("RANK") == "1" and rng.random() < 0.2:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_batch(scope, batch, READING)


def job(scope, folder):
    return run_corpus(scope, TEXTS, folder, reader=reading, shard_characters=2_000, batch_tokens=256)


def killed_at_random(scope, folder, times):
    "Fork, run, kill -9 at a random moment; again, until it was killed so often, then let it finish."
    begun = time.time()
    job(scope, folder / "whole")
    takes, kills, done = time.time() - begun, 0, 0
    while kills < times:
        pid = os.fork()
        if pid == 0:
            job(scope, folder / "killed")
            os._exit(0)
        time.sleep(rng.uniform(0, takes / times * 1.5))
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL:
            kills += 1
        else:  # it was faster than we: break something and go on
            done += 1
            rng.choice(sorted((folder / "killed").glob("shard-*.done"))).unlink()
    job(scope, folder / "killed")
    print(json.dumps({"kills": kills, "finished before the kill": done, "rows": Corpus(folder / "killed").n_rows}))


if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(default_model())
    scope = Scope(tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=48), tokenizer)
    if sys.argv[1] == "kill":
        killed_at_random(scope, Path(sys.argv[2]), int(sys.argv[3]))
    else:
        print(json.dumps({"rows": job(scope, sys.argv[2]).n_rows}))
