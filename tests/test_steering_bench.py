"The bench of steerers: what is counted, sweeps that resume, who is not beaten."
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

from architectures import tiny_reader
from tokenscope.core.edit import Edit
from tokenscope.text.names import ScopeError
from tokenscope.change.steering_bench import numbers_touched, pareto_front, perplexity_ratio, steering_bench, steering_row, steering_sweep
from tokenscope.change.steering_tasks import SteeringTask


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def small(request):
    return tiny_reader(request.param)


TASK = SteeringTask("length", ["Who?", "What is it?"], lambda answers: torch.tensor([float(len(a) > 5) for a in answers]), "Be long.", ["a b c"], ["d e f"])


def push(scope, task, strength):
    return [Edit("resid_post", layers=0, add=torch.full((scope.d_model,), strength))]


def test_numbers_are_counted(small):
    assert numbers_touched(small, []) == numbers_touched(small, [Edit("resid_post", add=0.0)]) == 0
    assert numbers_touched(small, push(small, TASK, 1.0)) == small.d_model
    assert numbers_touched(small, [Edit("resid_post", add=1.0), Edit("z", layers=0, scale=0.0, heads=[1])]) == small.n_layers * small.d_model + small.d_head
    assert numbers_touched(small, [Edit("attn_scores", layers=[0], add=2.0, keys=0, heads=[0, 1])]) == 2
    assert numbers_touched(small, [Edit("resid_post", layers=0, add=1.0, when="generated")]) == small.d_model


def test_nothing_costs_nothing(small):
    assert perplexity_ratio(small, [], ["A short text.", "Another one."]) == 1.0
    assert perplexity_ratio(small, [Edit("resid_post", add=0.0)], ["A short text."]) == 1.0


def test_ways_may_be_edits_words_or_functions(small):
    table = steering_bench(small, TASK, {"plain": [], "words": "Be long.", "edits": push(small, TASK, 2.0), "function": lambda scope, task: push(scope, task, 2.0)}, 4)
    assert list(table.index) == ["plain", "words", "edits", "function"] and table.loc["edits"].equals(table.loc["function"])
    assert table.numbers["plain"] == table.numbers["words"] == 0 and table.perplexity["words"] == 1
    assert "overhead" in steering_row(small, TASK, [], 2, overhead=True)
    with pytest.raises(ScopeError, match="Not a way of steering"):
        steering_row(small, TASK, [3])


def test_a_sweep_goes_on_where_it_stopped(small, tmp_path):
    settings, calls = [dict(strength=float(s)) for s in range(4)], []

    def way(scope, task, strength):
        calls.append(strength)
        if strength == 2 and calls.count(2.0) == 1:
            raise KeyboardInterrupt
        return push(scope, task, strength)

    with pytest.raises(KeyboardInterrupt):
        steering_sweep(small, TASK, way, settings, tmp_path / "a", 4)
    resumed = steering_sweep(small, TASK, way, settings, tmp_path / "a", 4)
    assert calls == [0, 1, 2, 2, 3]
    whole = steering_sweep(small, TASK, way, settings, tmp_path / "b", 4)
    assert resumed.equals(whole)
    assert all((tmp_path / "a" / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / "b").iterdir())
    with pytest.raises(ScopeError, match="another job"):
        steering_sweep(small, replace(TASK, questions=["Why?", "How?"]), way, settings, tmp_path / "a", 4)
    assert json.loads((tmp_path / "a/manifest.json").read_text())["task"] == "length"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_front(points):
    front = pareto_front(*zip(*points))
    assert any(front)
    for i, (a, b) in enumerate(points):
        assert front[i] != any((g >= a and c <= b and (g, c) != (a, b)) for g, c in points)
