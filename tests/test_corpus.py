"Corpus jobs: windows, batches, what is computed, other architectures."
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import tiny
from corpus_fixtures import WORDS, scope, small, texts  # noqa: F401
from tokenscope.corpus.corpus import run_corpus
from tokenscope.data.declaration import udhr
from tokenscope.text.names import ScopeError
from tokenscope.core.reader import SCORES, CorpusTask, batches_by_length, read_shard, windows_of
from tokenscope.core.scope import Scope


# Windows and batches

@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(2, 40), st.data())
def test_windows_keep_every_token_once(n, context, data):
    overlap = data.draw(st.integers(0, context // 2))
    made = windows_of(0, list(range(n)), context, overlap)
    assert [i for w in made for i in w.ids[w.keep_from:]] == list(range(n))
    assert all(len(w.ids) <= context and w.ids == list(range(w.start, w.start + len(w.ids))) and len(w.ids) > w.keep_from for w in made)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_keep_to_their_budget(lengths, budget):
    made = batches_by_length(lengths, budget)
    assert sorted(i for b in made for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= budget for b in made)


# What is computed

def test_corpus_equals_single_texts(scope, tmp_path):
    texts = [a.split("\n")[0][:160] for a in udhr("eng")[:8]] + ["", "One"]
    job = run_corpus(scope, texts, tmp_path / "a", scores=tuple(SCORES), sites=("resid_post", "embed", "z"), layers=[3, -1], shard_characters=300, batch_tokens=128)
    table, states = job.to_df(), {s: torch.cat(list(job.states(s))) for s in ("resid_post", "embed", "z")}
    assert len(job) == len(texts) and job.n_rows == len(table) == len(states["embed"]) and states["z"].shape[1:] == (2, 9, 64)
    for i, text in enumerate(texts):
        mine = (table.text == i).to_numpy()
        if not text:
            assert not mine.any()
            continue
        ids = scope.tokenizer(text)["input_ids"]
        assert table.id[mine].tolist() == ids and table.position[mine].tolist() == list(range(len(ids)))
        logp = scope.logits(text)[0].log_softmax(-1)
        np.testing.assert_allclose(table.surprisal[mine], scope.surprisal(text).values, atol=2e-3)
        np.testing.assert_allclose(table.entropy[mine], scope.entropy(text).values, atol=2e-3)
        ranks = [(logp[t] > logp[t, ids[t + 1]]).sum().item() for t in range(len(ids) - 1)]
        assert np.abs(np.array(ranks) - table["rank"][mine].to_numpy()[1:]).max(initial=0) <= 2
        read = scope.read(text, ["resid_post", "embed"], layers=[3, 29])
        torch.testing.assert_close(states["resid_post"][torch.tensor(mine)], read["resid_post"][0].movedim(0, 1), rtol=1e-3, atol=2e-2)
        torch.testing.assert_close(states["embed"][torch.tensor(mine)], read["embed"][0])
    strip = job.text_scores(0, "entropy")
    assert len(strip) == (table.text == 0).sum() and "".join(strip.tokens) == texts[0]


def test_states_alone_stop_the_forward(small):
    seen = [small.read("a", layers=0)][1:]  # the first read probes the model
    handle = small.model.model.layers[2].register_forward_hook(lambda *a: seen.append(1))
    read_shard(small, ["a cat"], CorpusTask((), "resid_post", layers=1))
    handle.remove()
    assert not seen


@pytest.mark.parametrize("positions, expected", [("all", 5), ("not first", 4), ("first", 1), ("last", 1), (slice(2, None), 3), ([0, -1, 9], 2), (1, 1), (-7, 0)])
def test_positions(small, positions, expected):
    table, tensors, about = read_shard(small, ["the cat sat on a"], CorpusTask("surprisal", "resid_post", layers=0, positions=positions))
    assert len(table["position"]) == len(tensors["resid_post"]) == about["rows"] == expected
    if expected:
        assert (table["position"] == np.arange(5)[[0, 4] if expected == 2 else slice(-expected, None) if positions not in (1, 'first') else slice(1, 2) if positions == 1 else slice(0, 1)]).all()


def test_a_long_text_is_read_in_windows(small, texts):
    table, _, about = read_shard(small, texts, CorpusTask(), overlap=16)
    ids = small.tokenizer(texts[-2])["input_ids"]
    mine = table["text"] == len(texts) - 2
    assert about["in several windows"] == 1 and about["without tokens"] == 1 and len(ids) > 64
    assert table["id"][mine].tolist() == ids and np.isnan(table["surprisal"][mine]).sum() == 1
    np.testing.assert_allclose(table["surprisal"][mine][:64], small.surprisal(ids[:64]).values, atol=1e-3)
    np.testing.assert_allclose(table["surprisal"][mine][64:112], small.surprisal(ids[48:112]).values[16:], atol=1e-3)


def test_a_reader_of_ones_own(small, tmp_path):
    def norms(scope, batch):
        return {"norm": scope.read(batch, "resid_post", layers=1)["resid_post"][:, 0].norm(dim=-1)}

    job = run_corpus(small, ["a cat", "the mat"], tmp_path / "a", reader=norms)
    assert job.to_df().norm.notna().all() and job.manifest["reader"].endswith("norms")
    with pytest.raises(ScopeError, match="The reader must return"):
        run_corpus(small, ["a cat"], tmp_path / "b", reader=lambda scope, batch: torch.ones(2))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3_moe", "gpt_neox", "opt", "bloom"])
def test_other_architectures(scope, texts, tmp_path, family):
    other = Scope(tiny(family, vocab_size=scope.vocab_size), scope.tokenizer)
    short = [t for t in texts if len(t) < 100][:20]
    job = run_corpus(other, short, tmp_path / "a", scores=("surprisal", "entropy"), sites="resid_post")
    states = torch.cat(list(job.states("resid_post")))
    table = job.to_df()
    i = max(range(len(short)), key=lambda i: len(short[i]))
    mine = (table.text == i).to_numpy()
    np.testing.assert_allclose(table.surprisal[mine], other.surprisal(short[i]).values, atol=1e-3)
    torch.testing.assert_close(states[torch.tensor(mine)], other.read(short[i])["resid_post"][0].movedim(0, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not tell a process its peak")
def test_memory_does_not_grow_with_the_corpus(small, tmp_path):
    def job(n):
        "(MiB on disk, the peak memory of the process in MiB) of a job over n texts."
        texts = [" ".join(np.random.default_rng(k).choice(WORDS, 30)) for k in range(n)]
        Path("/proc/self/clear_refs").write_text("5")
        run_corpus(small, texts, tmp_path / str(n), shard_characters=10_000, sites=("resid_pre", "resid_mid", "resid_post", "mlp_post", "z"), scores=())
        peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return sum(p.stat().st_size for p in (tmp_path / str(n)).iterdir()) / 2**20, peak / 1024

    job(400)  # from here on the allocator holds its caches
    (small_disk, small_peak), (large_disk, large_peak) = job(401), job(4_000)
    assert large_disk > small_disk + 100, "the large job has to write much more than the small one"
    assert large_peak - small_peak < 0.25 * (large_disk - small_disk)
