"Haystacks, tasks and exact answers."
import json

import pytest
from hypothesis import given, settings, strategies as st

from tokenscope.data.haystacks import PAIR_CHARS, make_haystack
from tokenscope.data.needle_answers import extract_answers, last_value_solver, oracle_solver, score_answer
from tokenscope.data.needles import PLANTERS, NeedleTask, branched_thread, conditional_needle, multi_needle, multi_thread, plant, single_needle, single_thread, delete_from_task
from tokenscope.text.names import ScopeError

SEEDS = st.integers(0, 10_000)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.sampled_from(list(PAIR_CHARS)), SEEDS)
def test_a_haystack_is_distinct_and_has_the_stated_size(n, kind, seed):
    made = make_haystack(n, kind=kind, seed=seed)
    strings = [s for pair in made.pairs for s in pair]
    assert len(set(strings)) == 2 * n and made == make_haystack(n, kind=kind, seed=seed) != make_haystack(n, kind=kind, seed=seed + 1)
    assert [made.text[a:b] for a, b in made.spans] == made.entries
    assert len(made.text) == PAIR_CHARS[kind] * n - 3 * (kind == "word")
    if kind != "word":
        assert json.loads(made.text) == made.mapping and make_haystack(chars=len(made.text), kind=kind, seed=seed) == made


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["forward", "backward", "random"]), st.sampled_from(list(PAIR_CHARS)), st.booleans(), SEEDS)
def test_threads_lead_to_their_answers(q, hops, direction, kind, write_hops, seed):
    bed = make_haystack(26, kind=kind, seed=seed)
    made = multi_thread(bed, n_threads=q, hops=hops, direction=direction, write_hops=write_hops, seed=seed)
    places = [i for t in made.threads for i in t]
    assert len(places) == len(set(places)) == q * hops
    keys, values = set(made.haystack.mapping), set(made.haystack.mapping.values())
    for chain, thread in zip(made.chains, made.threads):
        assert len(set(chain)) == hops + 1 and made.haystack.follow(chain[0]) == chain and chain[-1] not in keys
        steps = [b - a for a, b in zip(thread, thread[1:])]
        assert direction == "random" or all(s > 0 if direction == "forward" else s < 0 for s in steps)
    assert len(keys & values) == q * (hops - 1)  # a distractor's value is never a key
    assert score_answer(made, oracle_solver(made)) == dict(right=1, format_failure=False) == score_answer(made, made.answer_text)
    assert len(made.haystack.text) == len(bed.text) and bed == make_haystack(26, kind=kind, seed=seed)


@pytest.mark.parametrize("kind", ["uuid", "short"])
@pytest.mark.parametrize("task", list(PLANTERS))
def test_solvers(kind, task):
    made = PLANTERS[task](make_haystack(24, kind=kind, seed=3))
    assert made.prompt.startswith(made.haystack.text + "\n") and score_answer(made, oracle_solver(made))["right"] == 1
    blind = replace_with_other(made)
    assert score_answer(made, blind)["right"] == 0 and score_answer(made, "I do not know.") == dict(right=0, format_failure=kind == "uuid")
    assert score_answer(made, f'Sure! The values are {json.dumps(made.answers)}.')["right"] == (1 if kind == "uuid" else score_answer(made, f"The values are {made.answers}")["right"])
    assert score_answer(delete_from_task(made), oracle_solver(delete_from_task(made)))["right"] == 0


def replace_with_other(task):
    return oracle_solver(PLANTERS[task.question](make_haystack(24, kind=task.haystack.kind, seed="another")))


def test_depth_and_placement():
    bed = make_haystack(11)
    assert [single_needle(bed, depth=d / 10).threads[0][0] for d in range(11)] == list(range(11))
    assert single_needle(bed, depth=0).prompt.count(bed.pairs[0][0]) == 2
    for seed in range(20):
        places = sorted(i for t in multi_needle(bed, n_needles=4, placement="clustered", seed=seed).threads for i in t)
        assert places == list(range(places[0], places[0] + 4))
    assert len({tuple(multi_needle(bed, n_needles=4, placement="random", seed=s).threads[0]) for s in range(20)}) > 3


def test_one_thread_of_many_is_a_thread_and_one_needle_of_many_a_needle():
    bed = make_haystack(9)
    assert multi_thread(bed, n_threads=1, hops=3, seed=5) == single_thread(bed, hops=3, seed=5)
    one = multi_needle(bed, n_needles=1, seed=2)
    assert one.prompt == single_needle(bed, depth=one.threads[0][0] / 8).prompt


def test_marks_are_found_in_any_order():
    made = conditional_needle(make_haystack(9, seed=1), n_needles=3)
    assert [key for key, _ in made.haystack.pairs if "*" in key] == [chain[0] for chain in made.chains] and 'Character: "*"' in made.prompt
    assert score_answer(made, json.dumps(made.answers[::-1]))["right"] == 1 and score_answer(made, made.answers[1])["right"] == pytest.approx(1 / 3)


def test_branches_end_early():
    made = branched_thread(make_haystack(30, kind="short", seed=2), hops=4, branches=3, seed=1)
    start = made.chains[0][0]
    assert made.haystack.follow(start) == made.chains[0]
    counts = [sum(key == k for key, _ in made.haystack.pairs) for k in made.chains[0][:-1]]
    assert counts == [3, 3, 3, 1]
    ways = sorted(len(made.haystack.follow(v)) for k, v in made.haystack.pairs if k == start)
    assert ways == [1, 1, 4]


def test_the_extractor_is_tolerant():
    one, two = "f47ac10b-58cc-4372-a567-0e02b2c3d479", "00000000-0000-4000-8000-000000000000"
    for text in (f'["{one}", "{two}"]', f"{one.upper()}\n{two}", f"1. `{one}`; 2. {two}.", f"{one},{two} and so on"):
        assert extract_answers(text) == [one, two]
    assert extract_answers("abcd, efgh abcde Abcd x", kind="short") == ["abcd", "efgh"] and extract_answers("ba ke mi ; lo da", kind="word") == ["ke", "mi", "da"]
    made = single_needle(make_haystack(3, seed=1), depth=0)
    assert score_answer(made, f"The value of {made.chains[0][0]} is {made.answers[0]}")["right"] == 1
    assert score_answer(made, made.answers[0] + "-and-more")["right"] == 1 and score_answer(made, "") == dict(right=0, format_failure=True)


def test_the_picture_is_escaped_and_short():
    made = conditional_needle(make_haystack(400, kind="short", seed=1), n_needles=3, mark="<")
    page = made.figure()
    assert page.count("&lt;") == 6 and len(page) < 4000 and page.count("<text") <= 9
    assert multi_thread(make_haystack(9), n_threads=2, hops=3).figure().count("<path") == 4 and last_value_solver(made)
    assert single_needle(make_haystack(3)).figure(weights=[0, 0.5, 1]).count("<rect") == 3


@pytest.mark.parametrize("wrong, message", [
    (lambda: make_haystack(0), "A haystack of 0 pairs"), (lambda: make_haystack(chars=79), "A haystack of 0 pairs"), (lambda: make_haystack(33, kind="word"), "accepted: 1 to 32"),
    (lambda: make_haystack(3, kind="emoji"), "Unknown kind of haystack"), (lambda: single_needle(make_haystack(3), depth=1.1), "Not a depth"), (lambda: single_needle(make_haystack(3), depth=float("nan")), "Not a depth"),
    (lambda: multi_needle(make_haystack(3), n_needles=4), "More needles than pairs: 4 in a haystack of 3"), (lambda: multi_needle(make_haystack(3), n_needles=0), "More needles"), (lambda: multi_needle(make_haystack(3), n_needles=1, placement="left"), "Unknown placement"),
    (lambda: conditional_needle(make_haystack(3), n_needles=1, mark="-"), "Not a mark"), (lambda: conditional_needle(make_haystack(3), n_needles=1, mark="**"), "Not a mark"), (lambda: conditional_needle(make_haystack(3, kind="word"), n_needles=1), "Not a mark"),
    (lambda: multi_thread(make_haystack(3), n_threads=2, hops=2), "More needles"), (lambda: multi_thread(make_haystack(3), n_threads=1, hops=2, direction="up"), "Unknown direction"), (lambda: multi_thread(make_haystack(3), n_threads=0, hops=2), "More needles"),
    (lambda: branched_thread(make_haystack(9), hops=1), "No branch"), (lambda: branched_thread(make_haystack(4), hops=3), "More needles"), (lambda: delete_from_task(single_needle(make_haystack(3)), part="hay"), "Unknown part"),
    (lambda: plant(single_thread(make_haystack(4), hops=2).haystack, "thread", [[0, 1]]), "Something is planted here already")])
def test_bad_requests_are_refused(wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong()


def test_repr_names_the_answers():
    assert isinstance(single_needle(make_haystack(3)), NeedleTask) and "1 of 3 pairs" in repr(single_needle(make_haystack(3)))
