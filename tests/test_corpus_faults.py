"Corpus jobs that are broken off, misused, killed, or shared by processes."
import json
import os
import subprocess
import sys

import pytest

from architectures import tiny
from corpus_fixtures import bytes_of, scope, small, texts  # noqa: F401
from notebooks import ROOT
from tokenscope.corpus.corpus import Corpus, run_corpus
from tokenscope.corpus.fingerprint import model_fingerprint
from tokenscope.core.edit import Edit
from tokenscope.text.names import ScopeError
from tokenscope.core.reader import CorpusTask, read_shard
from tokenscope.core.scope import Scope
from tokenscope.corpus.shards import ShardStore


def test_resuming_does_only_what_is_missing(small, texts, tmp_path):
    how = dict(sites="resid_post", layers=[0, 2], shard_characters=400)
    whole = run_corpus(small, texts, tmp_path / "a", **how)
    expected = bytes_of(tmp_path / "a")
    store = whole.store
    store.path(1, "done").unlink()
    with open(store.path(2, "safetensors"), "rb+") as f:
        f.truncate(100)
    store.path(3, "parquet").write_bytes(b"x" * store.path(3, "parquet").stat().st_size)
    (store.folder / ".shard-000004.parquet.99").write_bytes(b"half a shard")
    untouched = store.path(0, "parquet").stat().st_mtime_ns
    with pytest.raises(ScopeError, match="The corpus job is not finished: 1 of"):
        Corpus(tmp_path / "a")
    run_corpus(small, texts, tmp_path / "a", **how)
    assert bytes_of(tmp_path / "a") == expected and store.path(0, "parquet").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("change, named", [
    (dict(layers=[1]), "layers"), (dict(sites="resid_pre"), "sites"), (dict(dtype="float16"), "stored as"), (dict(label="steered"), "label"), (dict(scores="entropy"), "scores"),
    (dict(positions="last"), "positions"), (dict(batch_tokens=64), "batch_tokens"), (dict(texts=["other"]), "data"), (dict(model="gpt2"), "weights")])
def test_another_job_in_the_folder_is_refused(scope, small, tmp_path, change, named):
    how = dict(texts=["a cat"], sites="resid_post", layers=[0])
    run = lambda texts, model=None, **kw: run_corpus(Scope(tiny(model, vocab_size=scope.vocab_size), scope.tokenizer) if model else small, texts, tmp_path / "a", **kw)
    run(**how)
    before = bytes_of(tmp_path / "a")
    with pytest.raises(ScopeError, match=f"The folder holds another job.*{named}"):
        run(**{**how, **change})
    assert bytes_of(tmp_path / "a") == before


def test_a_folder_of_other_things_is_left_alone(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ScopeError, match="The folder is not empty and holds no corpus job"):
        run_corpus(small, ["a"], tmp_path)


def test_fine_tuned_weights_are_noticed(small):
    before = model_fingerprint(small)
    p = small.model.model.layers[1].mlp.up_proj.weight
    p.data.mul_(1.01)
    assert model_fingerprint(small)["weights"] != before["weights"]
    p.data.div_(1.01)


def test_two_jobs_on_one_folder(small, tmp_path):
    with ShardStore(tmp_path / "a").locked(), pytest.raises(ScopeError, match="Another job works in this folder"):
        run_corpus(small, ["a cat"], tmp_path / "a")
    assert len(run_corpus(small, ["a cat"], tmp_path / "a")) == 1


def test_states_that_do_not_fit_the_stored_type(small):
    with pytest.raises(ScopeError, match="resid_post does not fit into float16"), small.edit(Edit("resid_post", layers=1, add=1e6)):
        read_shard(small, ["a cat sat"], CorpusTask((), "resid_post", dtype="float16"))


@pytest.mark.parametrize("wrong, message", [
    (dict(scores="loss"), "Unknown score 'loss'"), (dict(sites="attn_scores"), "A corpus job cannot keep attn_scores"), (dict(sites="logits"), "A corpus job cannot keep logits"),
    (dict(scores=()), "Nothing to compute"), (dict(dtype="int8"), "Unknown dtype"), (dict(sites="nowhere"), "nowhere"), (dict(sites="resid_post", layers=[99]), "99"),
    (dict(batch_tokens=0), "batch_tokens must be"), (dict(shard_characters=0), "A shard must hold something")])
def test_bad_settings(small, tmp_path, wrong, message):
    with pytest.raises(ScopeError, match=message):
        run_corpus(small, ["a cat"], tmp_path / "a", **wrong)
    assert not (tmp_path / "a" / "manifest.json").exists()


def test_a_model_without_a_tokenizer(tmp_path):
    with pytest.raises(ScopeError, match="No tokenizer"):
        run_corpus(Scope(tiny("llama")), ["a"], tmp_path / "a")


def test_a_tokenizer_of_another_model(scope, tmp_path):
    with pytest.raises(ScopeError, match="outside the model's vocabulary"):
        run_corpus(Scope(tiny("llama"), scope.tokenizer), ["a cat"], tmp_path / "a")


# Killed, and several processes

def killing(*args, timeout=300):
    done = subprocess.run([sys.executable, str(ROOT / "tests/corpus_killing.py"), *map(str, args)], capture_output=True, text=True, timeout=timeout, cwd=ROOT / "tests",
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    "The files of the job, done by one process that nobody disturbed."
    folder = tmp_path_factory.mktemp("corpus") / "one"
    killing("run", folder)
    return bytes_of(folder)


def test_a_full_disk(one, tmp_path):
    said = killing("full", tmp_path / "two", max(map(len, one.values())) - 1)
    assert "could not be written" in said["error"]
    assert "safe" in said["error"]
    assert not [p for p in (tmp_path / "two").iterdir() if p.name.startswith(".shard")]
    killing("run", tmp_path / "two")
    assert one == bytes_of(tmp_path / "two")


def test_a_job_killed_twenty_times_ends_with_the_same_bytes(one, tmp_path):
    said = killing("kill", tmp_path, 20)
    assert said["kills"] >= 20
    assert bytes_of(tmp_path / "killed") == one
    assert not [p for p in (tmp_path / "killed").iterdir() if p.name.startswith(".shard") and p.name.endswith(".safetensors")]


def launch(tmp_path, *args):
    return subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                           "--main_process_port", "0", str(ROOT / "tests/corpus_killing.py"), *map(str, args)], capture_output=True, text=True, timeout=300, cwd=ROOT / "tests",
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_write_what_one_writes(one, tmp_path):
    done = launch(tmp_path, "run", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert one == bytes_of(tmp_path / "two")


def test_a_dying_worker_loses_nothing(one, tmp_path):
    done = launch(tmp_path, "die", tmp_path / "two")
    assert done.returncode != 0
    killing("run", tmp_path / "two")
    assert one == bytes_of(tmp_path / "two")
