"Needles and threads asked of models."
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import tokenscope
from architectures import tiny
from corpus_fixtures import scope  # noqa: F401
from tokenscope.change.contrasts import answer_logprobs
from tokenscope.data.haystacks import make_haystack
from tokenscope.data.needle_answers import last_value_solver, oracle_solver
from tokenscope.data.needles import multi_needle, multi_thread, single_needle, delete_from_task
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.learn.shipped import shipped
from tokenscope.learn.small_models import load_header
from tokenscope.lenses.needle_threading import (advertised_in_chars, effective_length, needle_sweep, pair_attention, random_haystack_sweep, score_tasks, task_ids, technique, teacher_forced,
                                                thread_attention, thread_batch, tokens_per_char, train_threads)

TASKS = [single_needle(make_haystack(3, kind="short", seed=1), depth=0.5), multi_thread(make_haystack(6, kind="short", seed=2), n_threads=2, hops=2, write_hops=True), multi_needle(make_haystack(2, seed=3), n_needles=2),
         delete_from_task(single_needle(make_haystack(1, kind="short", seed=4)), part="haystack")]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def reader(scope, request):
    return Scope(tiny(request.param, vocab_size=scope.vocab_size, max_position_embeddings=512), scope.tokenizer)


@pytest.fixture(scope="module")
def toy():
    return shipped("threads").scope


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_four_architectures_are_measured_and_left_alone(reader):
    ids = torch.tensor([reader.tokenizer("The cat sat on the mat")["input_ids"]])
    plain, hooks, weights = reader.model(ids).logits, hooks_on(reader.model), {n: p.clone() for n, p in reader.model.named_parameters()}
    made, again, control = (f(reader, **technique["example"]) for f in (needle_sweep, needle_sweep, random_haystack_sweep))
    assert len(made) == 12 and made.logprob.lt(0).all() and np.isfinite(made.logprob).all() and made.equals(again) and not made.logprob.equals(control.logprob)
    assert (made.tokens == control.tokens).mean() < 1  # the control has another text
    shares = pair_attention(reader, TASKS[1], thread=1, hop=1)
    assert shares.groupby("layer").attention.sum().between(0, 1).all() and set(shares.layer) == {0, 1, 2} and shares.dropna().groupby("layer").size().eq(4).all()
    assert torch.equal(reader.model(ids).logits, plain) and hooks_on(reader.model) == hooks and all(torch.equal(p, weights[n]) for n, p in reader.model.named_parameters())


def test_batches_and_padding_do_not_matter(reader):
    whole = teacher_forced(reader, TASKS)
    for reader.tokenizer.padding_side, tokens in (("left", 1), ("right", 300)):
        pd.testing.assert_frame_equal(whole, teacher_forced(reader, TASKS, tokens), atol=1e-4)
    lone = pd.concat([teacher_forced(reader, [task]).assign(task=i) for i, task in enumerate(TASKS)], ignore_index=True)
    pd.testing.assert_frame_equal(whole, lone, atol=1e-4)
    assert whole.groupby("task").size().tolist() == [1, 4, 2, 1]


def test_the_score_is_the_logprob_of_the_answer(reader):
    single = [TASKS[0], TASKS[3]]
    expected = answer_logprobs(reader, [t.prompt for t in single], [t.answers[0] for t in single], mean=True)
    np.testing.assert_allclose(teacher_forced(reader, single).logprob, expected, atol=1e-4)
    ids, where = task_ids(reader, TASKS[1])
    said = [reader.tokenizer.decode(ids[start:end]) for *_, start, end in where]
    assert said == [value for chain in TASKS[1].chains for value in chain[1:]] and reader.tokenizer.decode(ids) == TASKS[1].prompt + TASKS[1].answer_text


def test_the_attention_is_a_share_of_each_token(reader):
    scores = thread_attention(reader, TASKS[1], thread=1, layers=[-1], heads=[0, 2])
    assert scores.values.shape[0] == 1 and scores.values.sum() == pytest.approx(1, abs=1e-4) and scores.layers == [2]
    both = [thread_attention(reader, TASKS[0], heads=h).values for h in range(4)]
    np.testing.assert_allclose(np.mean(both, 0), thread_attention(reader, TASKS[0]).values, atol=1e-5)


def test_half_precision(scope):
    half = Scope(tiny("llama", vocab_size=scope.vocab_size, max_position_embeddings=512).to(torch.bfloat16), scope.tokenizer)
    assert np.isfinite(teacher_forced(half, TASKS).logprob).all() and np.isfinite(thread_attention(half, TASKS[0]).values).all()


def test_a_model_may_be_a_function():
    grid = dict(lengths=(400, 800), depths=(0, 1), repeats=2)
    for task, more in (("single", {}), ("multi", dict(n_needles=3)), ("conditional", dict(n_needles=3)), ("thread", {}), ("threads", dict(n_threads=2, hops=2)), ("branched", dict(hops=2))):
        table = needle_sweep(oracle_solver, task=task, **grid, **more)
        assert table.right.eq(1).all() and not table.format_failure.any() and len(table) == (8 if task == "single" else 4)
    assert needle_sweep(last_value_solver, **grid).groupby("depth").right.mean().tolist() == [0, 1]
    assert random_haystack_sweep(oracle_solver, **grid).right.eq(0).all()
    texts = [[], []]
    for seen in texts:
        needle_sweep(lambda task: seen.append(task.prompt) or "", **grid)
    assert texts[0] == texts[1] and len(set(texts[0])) == 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_the_effective_length_falls_with_the_threshold(rows, one, two, worst):
    table = pd.DataFrame([dict(chars=100 * (i + 1), depth=d, right=float(v)) for i, row in enumerate(rows) for d, v in enumerate(row)])
    (low, *ends), high = effective_length(table, min(one, two), worst, 20), effective_length(table, max(one, two), worst, 20)[0]
    assert low >= high and ends[0] <= ends[1] and low in (0, *table.chars)
    assert effective_length(table, 0, worst, 20)[0] == 100 * len(rows) and effective_length(table, worst=True, draws=20)[0] <= effective_length(table, draws=20)[0]


def test_tokens_and_characters(scope):
    tokenizer, hay = scope.tokenizer, make_haystack(chars=4000).text
    table = tokens_per_char({"uuid": hay, "words": "the house " * 20}, {"own": tokenizer, "bytes": lambda texts, **_: {"input_ids": [list(t.encode()) for t in texts]}})
    assert table.loc["bytes"].eq(1).all() and table.loc["own", "uuid"] > 3 * table.loc["own", "words"]
    assert advertised_in_chars(1000, tokenizer, hay) == math.floor(1000 / table.loc["own", "uuid"])
    with pytest.raises(ScopeError, match="No text to count"):
        tokens_per_char({"none": ""}, {"own": tokenizer})


def test_the_shipped_toy_follows_threads_and_only_those(toy):
    ask = dict(task="threads", kind="word", lengths=(128,), repeats=20, n_threads=2, hops=2, write_hops=True)
    assert needle_sweep(toy, **ask).right.mean() > 0.9 > 0.3 > random_haystack_sweep(toy, **ask).right.mean()
    assert (Path(tokenscope.__file__).parent / "shipped/thread_toy.safetensors").stat().st_size < 2e6
    tasks = [multi_thread(make_haystack(8, kind="word", seed=s), n_threads=1, hops=1, seed=s) for s in range(6)]
    assert score_tasks(toy, tasks).right.tolist() == score_tasks(toy, tasks, "generate").right.tolist()


def test_training_is_repeatable_and_labels_are_the_answer(tmp_path, toy):
    ids, labels = thread_batch(toy.tokenizer, 900, size=3)
    assert torch.equal(ids, thread_batch(toy.tokenizer, 900, size=3)[0]) and not torch.equal(ids[:, :9], thread_batch(toy.tokenizer, 901, size=3)[0][:, :9])
    assert ((labels == ids) | (labels == -100)).all() and (labels[:, 0] == -100).all() and (labels != -100).any(1).all()
    one, two = (train_threads(tmp_path / f"{n}.safetensors", steps=2, seed=1) for n in "ab")
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), two.model.parameters())) and load_header(tmp_path / "a.safetensors")["provenance"]["steps"] == 2


def test_nothing_is_cut_to_fit(scope):
    short = Scope(tiny("llama", vocab_size=scope.vocab_size), scope.tokenizer)
    task = single_needle(make_haystack(8))
    n = len(task_ids(scope, task)[0])
    for mode in ("argmax", "generate"):
        with pytest.raises(ScopeError, match=f"longer than the context: 640 characters are {n:,} tokens .* context is 64 tokens"):
            score_tasks(short, [task], mode)
    with pytest.raises(ScopeError, match="longer than the context"):
        thread_attention(short, task)


@pytest.mark.parametrize("wrong, message", [
    (lambda s: needle_sweep(s, task="pin"), "Unknown task 'pin'"), (lambda s: score_tasks(s, []), "Nothing to score with: 0 tasks"), (lambda s: score_tasks(s, TASKS, "guess"), "mode 'guess'"),
    (lambda s: needle_sweep(s, lengths=()), "Nothing to score with"), (lambda s: needle_sweep(s, lengths=(10,)), "A haystack of 0 pairs"), (lambda s: needle_sweep(s, depths=(2,)), "Not a depth"),
    (lambda s: needle_sweep(s, repeats=0), "Nothing to score with"), (lambda s: thread_attention(s, TASKS[0], hop=3), "does not say hop 3 of thread 0"), (lambda s: thread_attention(s, TASKS[0], thread=5), "of thread 5"),
    (lambda s: thread_attention(s, TASKS[0], layers=99), "99"), (lambda s: thread_attention(s, TASKS[0], heads=[7]), "7"), (lambda s: teacher_forced(Scope(s.model), TASKS), "No tokenizer"),
    (lambda s: effective_length(pd.DataFrame(dict(chars=[1], depth=[0.0], right=[float("nan")]))), "holds NaN"), (lambda s: effective_length(pd.DataFrame(dict(chars=[], depth=[], right=[]))), "No scores")])
def test_bad_input_is_refused(reader, wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong(reader)
