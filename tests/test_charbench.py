"Character questions, their answers and the properties of their cuts."
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import tiny_reader
from corpus_fixtures import small  # noqa: F401
from tokenscope.change.answers import error_overlap, option_scores
from tokenscope.change.contrasts import answer_logprobs
from tokenscope.data.cuts import random_cut, word_spans
from tokenscope.data.tokenizer_catalogue import tokenizer_catalogue
from tokenscope.measure.intervals import partial_correlation
from tokenscope.text.names import ScopeError
from tokenscope.learn.shipped import shipped
from tokenscope.tokenizers.charbench import (CHAR_TASKS, SPELLINGS, accuracy_curve, answer_by_scoring, answer_table, char_question, charbench, charbench_words, correlation_table, counting_bias,
                                             make_charbench, question_picture, question_prompts, segmentation_features, shuffled_answers, spellable, speller, speller_batch, speller_cut, train_speller)

WORDS = charbench_words(["Straw berries and Mississippi cheese, cinnamon balloons; the quick brown foxes jumped over lazy sleeping dogs while whales breathed beneath frozen oceans"])
ODD = ["na\x00\x00", "Straße", "مرحبا", "xяz日本", "שלום", "👩\u200d🚀é", "\u0301e", "1234567890" * 4, "١٢٣", "a'b\"c", "{word}", "x"]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def reader(request):
    return tiny_reader(request.param, max_position_embeddings=512)


@settings(deadline=None, max_examples=200)
@given(word=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), at=st.integers(0, 11))
def test_answers_are_exact(word, at):
    character = word[at % len(word)]
    asked = {task: char_question(task, word, character) for task in CHAR_TASKS}
    count, unique, first, last = (q["answer"] for q in asked.values())
    assert word[first] == word[last] == character and character not in word[:first] + word[last + 1:]
    assert first <= last and (first == last) == (count == 1) and 1 <= unique <= len(word) and count == sum(c == character for c in word)
    for q in asked.values():
        assert q["question"][q["start"]:].startswith(word)


def test_the_papers_examples():
    assert [char_question(*q)["answer"] for q in (("count", "mississippi", "s"), ("unique", "balloon", "b"), ("first", "cheese", "e"), ("last", "cinnamon", "n"))] == [4, 5, 2, 7]
    assert char_question("first", "Aardvark", "a")["mixed_case"] and char_question("count", "Aardvark", "d")["mixed_case"] and not char_question("first", "Bard", "a")["mixed_case"]


def test_the_benchmark_is_seeded_and_words_are_disjoint():
    made = make_charbench(WORDS, 1, (5, 6), seed=1)
    assert made.equals(make_charbench(WORDS, 1, (5, 6), seed=1)) and not made.equals(make_charbench(WORDS, 1, (5, 6), seed=2))
    assert made.word.is_unique and sorted(made.task) == sorted(list(CHAR_TASKS) * 2)
    skewed = pd.Series([make_charbench(["aaab"], 1, (4,), ("count",), seed=s).character[0] for s in range(200)])
    assert 0.65 < (skewed == "a").mean() < 0.85  # drawn by position


def test_known_cuts(small):
    assert word_spans("strawberry", small.tokenizer) == [(0, 2), (2, 5), (5, 10)] and word_spans("strawberry", small.tokenizer, " ") == [(0, 10)]
    rows = pd.DataFrame([char_question("first", "strawberry", c) for c in "rb"])
    assert segmentation_features(rows, small.tokenizer).TTL.tolist() == [3, 5]


@pytest.mark.parametrize("name", [entry.name for entry in tokenizer_catalogue()])
def test_every_tokenizer_of_the_catalogue(name):
    bench = pd.DataFrame([char_question("last", w, w[-1]) for w in WORDS] + [char_question("count", WORDS[0], WORDS[0][0])])
    made = segmentation_features(bench, name)
    assert np.allclose(made.NT * made.CR, made.WL) and (made.pieces.map("".join) == made.word).all()
    index = made[made.task == "last"]
    assert index.TTL.between(1, index.WL).all() and (index.TTL == index.WL)[index.NT == 1].all() and made.TTL.isna().iloc[-1]
    inside = segmentation_features(bench.head(4), name, bare=False)
    assert (inside.pieces.map("".join) == inside.word).all()
    odd = segmentation_features(pd.DataFrame([char_question("last", w, w[-1]) for w in ODD]), name)
    assert (odd.NT >= 1).all() and odd.TTL.dropna().between(1, 40).all()


def test_options_are_scored_whole(reader):
    prompts, options = ["How many?", "A longer question, how many then?"], ["1", "10", "107", " two"]
    made = option_scores(reader, prompts, options)
    each = answer_logprobs(reader, [p for p in prompts for _ in options], options * 2).view(2, 4)
    p = each.exp()
    exclusive = torch.stack([p[:, 0] - p[:, 1], p[:, 1] - p[:, 2], p[:, 2], p[:, 3]], 1)  # 1 goes on to 10, and 10 to 107
    assert (made.exp() - exclusive).abs().max() < 1e-6 and (made[:, 2:] - each[:, 2:]).abs().max() < 1e-3 and torch.allclose(made, option_scores(reader, prompts, options, batch_tokens=1), atol=1e-3)
    for wrong in (([], ["1"]), (["a"], []), (["a"], [""])):
        with pytest.raises(ScopeError):
            option_scores(reader, *wrong)


def test_four_architectures_answer(reader):
    few = dict(words=WORDS, n_per_length=1, lengths=(5,), shots=1, tasks=("first", "count"))
    made, again, control = charbench(reader, **few), charbench(reader, **few), shuffled_answers(reader, **few)
    assert made.equals(again) and made.prediction.between(0, 10).all() and (made.logp <= 0).all()
    assert sorted(control.prediction) == sorted(made.prediction) and (made.correct == (made.prediction == made.answer)).all()
    assert "<svg" in question_picture(reader, char_question("first", "<b>&", "b")) and "<b>" not in question_picture(reader, char_question("first", "<b>&", "b"))


def test_prompts_with_and_without_a_template(small):
    bench = make_charbench(WORDS, 1, (5,))
    chat = question_prompts(bench, small.tokenizer, bench.tail(1))
    assert [len(c) for c in chat] == [1, 1, 1, 3] and chat[3][1]["content"] == str(bench.answer.iloc[-1])
    assert question_prompts(bench, None)[0].endswith("Answer:")


def test_tables_and_baselines():
    bench = segmentation_features(pd.DataFrame([char_question(t, w, w[1]) for t in CHAR_TASKS for w in WORDS]), list)
    constant = bench.assign(prediction=1, correct=bench.answer == 1)
    table = answer_table(constant)
    assert all(table.accuracy[t] == (bench.answer[bench.task == t] == 1).mean() for t in CHAR_TASKS) and (table["entropy (bits)"] == 0).all()
    assert correlation_table(constant).r.isna().all() and set(correlation_table(constant).note) == {"the answers hardly vary"}
    right = bench.assign(prediction=bench.answer, correct=True)
    assert correlation_table(right).r.isna().all() and counting_bias(right).isna().all()  # undefined, not 0
    off = bench.assign(prediction=bench.answer - (bench.WL > 5), correct=bench.WL <= 5)
    found = correlation_table(off).loc[("last", "WL")]
    part = off[off.task == "last"]
    group = part.groupby("correct").WL.mean()
    p = part.correct.mean()
    assert math.isclose(found.r, (group[True] - group[False]) / part.WL.std(ddof=0) * (p * (1 - p)) ** 0.5)  # the point-biserial formula
    assert counting_bias(off).tolist() == [-1] * 4 and found.low < found.r < found.high
    curve = accuracy_curve(off, "WL").loc["last"]
    assert curve.n.sum() == len(part) and (curve.accuracy == (curve.index <= 5)).all() and (curve.error == 0).all()
    overlap = error_overlap({"off": off.correct, "right": right.correct})
    assert overlap.loc["off", "off"] == 1 and overlap.loc["off", "right"] == 0 and math.isnan(overlap.loc["right", "right"])


def test_partial_correlation_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(200)
    x, y = z + rng.standard_normal(200), z + rng.standard_normal(200)
    (xy, xz, yz) = (partial_correlation(*pair)[0] for pair in ((x, y), (x, z), (y, z)))
    r, low, high = partial_correlation(x, y, [z])
    assert math.isclose(xy, np.corrcoef(x, y)[0, 1]) and math.isclose(r, (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)), abs_tol=1e-12) and low < r < high
    assert all(map(math.isnan, partial_correlation([1, 2, 3], [1, 2, 3]))) and all(map(math.isnan, partial_correlation(x, y, [x]))) and partial_correlation(x, x)[0] > 0.999
    for wrong in (([1, 2], [1]), ([1, math.nan], [1, 2])):
        with pytest.raises(ScopeError, match="A correlation needs"):
            partial_correlation(*wrong)


@pytest.mark.parametrize("call", [lambda: char_question("spell", "word", "w"), lambda: char_question("first", "", ""), lambda: char_question("first", "half \ud800", "h"), lambda: char_question("first", "word", "x"),
                                  lambda: char_question("first", "word", "wo"), lambda: make_charbench(["word"], 2), lambda: make_charbench(["word"], 0), lambda: make_charbench(["word"], 1, []),
                                  lambda: error_overlap({}), lambda: error_overlap({"a": [True], "b": []}), lambda: speller("words"), lambda: speller_cut("words")])
def test_bad_input_is_refused(call):
    with pytest.raises(ScopeError):
        call()


def test_a_prompt_beyond_the_context_and_an_empty_table(small):
    with pytest.raises(ScopeError, match="too long"):
        answer_by_scoring(small, pd.DataFrame([char_question("first", "1234567890" * 40, "3")]))
    with pytest.raises(ScopeError, match="No questions to answer"):
        answer_by_scoring(small, make_charbench(WORDS, 1, (5,)).head(0))


@settings(deadline=None, max_examples=60)
@given(word=st.text(min_size=0, max_size=12), seed=st.integers(0, 9))
def test_random_cuts_spell_the_word(word, seed):
    pieces = {word[:2], word[1:4], word[3:]}
    found = random_cut(word, pieces, seed)
    assert "".join(found) == word and all(len(p) == 1 or p in pieces for p in found) and found == random_cut(word, pieces, seed)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_shipped_spellers(spelling):
    scope, cut, write = speller(spelling)
    table = scope.tokenizer.get_vocab()
    real, _ = spellable(["barometer", "fastening", "gathering", "sharpened", "blubbering"], table)
    bench = pd.DataFrame([char_question(task, w, w[2]) for w in real for task in ("count", "first", "last")])
    made = answer_by_scoring(scope, bench, write=write)
    assert real and made.logp.gt(-math.inf).all() and all(set(cut(w)) <= set(table) for w in real) and shipped(f"speller_{spelling.replace(' ', '_')}").made_by["spelling"] == spelling


def test_training_is_seeded_and_learns_the_answer_alone(tmp_path):
    first, second = (train_speller(tmp_path / name, spelling="letters", steps=3, d_model=16, intermediate_size=16) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    scope = speller("pieces")[0]
    pieces = sorted(p for p in scope.tokenizer.get_vocab() if p.isalpha())
    words = []
    for spelling in SPELLINGS:
        ids, labels = speller_batch(5, spelling, scope.tokenizer, pieces, size=16)
        assert ((labels != -100).sum(1) == 1).all() and not (ids == scope.tokenizer.unk_token_id).any()
        words.append(["".join(scope.tokenizer.convert_ids_to_tokens(row[2:])).split("=")[0] for row in ids.tolist()])
    assert words[0] == words[1] == words[2]  # the same words, whatever the cut
