"Where digits are cut, sums in either direction, and what is wrong with answers."
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from architectures import tiny
from corpus_fixtures import scope  # noqa: F401
from tokenscope.learn.shipped import shipped
from tokenscope.learn.adders import REWRITES, adder_answers, draw_problems, rewrite_rows, train_rewriter
from tokenscope.change.contrasts import answer_logprobs
from tokenscope.data.cuts import tokens_with_digits, number_pieces
from tokenscope.data.tokenizer_catalogue import named_tokenizers
from tokenscope.text.names import ScopeError
from tokenscope.text.numbers import add_carries, chunk_number, column_sum, digit_groups, sample_additions, to_base
from tokenscope.core.scope import Scope
from tokenscope.tokenizers.tokenization_counts import (ERROR_KINDS, SEPARATORS, accuracy_by, addition_accuracy, analyze_errors, column_sum_svg, digit_errors, error_diagnosis, error_kind, addition_prompt,
                                                       number_rule, number_rules, random_cut_accuracy, read_number, sample_shots, technique, write_number)

PROBLEMS = sample_additions((7, 7, 8), 3) + sample_additions((7, 8, 8), 2)
FORMS = ["nosep", *(f"{name}_{way}" for name in SEPARATORS for way in ("l2r", "r2l", "random"))]
whole = st.integers(0, 10**40)


def cutting(pattern):
    "A tokenizer that cuts digits by a regular expression; every piece is known."
    inner = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def reader(scope, request):
    return Scope(tiny(request.param, vocab_size=scope.vocab_size, max_position_embeddings=512), scope.tokenizer)


@settings(max_examples=80, deadline=None)
@given(whole, st.sampled_from(FORMS), st.integers(1, 5))
def test_forms_lose_nothing(n, form, size):
    written = write_number(n, form, size)
    assert read_number(written) == (str(n), written) == read_number(f"12 + 3 = {written}\nmore")
    assert write_number(n, "comma_r2l") == f"{n:,}" and (len(str(n)) % size or write_number(n, "dot_l2r", size) == write_number(n, "dot_r2l", size))
    if form != "nosep" and size > 1:
        assert written.count(SEPARATORS[form.partition("_")[0]]) == (len(str(n)) - 1) // size


def test_the_examples_of_the_paper():
    assert (write_number(1234567, "comma_r2l"), write_number(1234567, "comma_l2r"), chunk_number("1234567")) == ("1,234,567", "123,456,7", "1,234,567")
    assert sum(add_carries(999, 1)) == 3
    table = analyze_errors([(2200, 0), (5, 5)], ["2199", "10"])
    assert digit_errors(table).magnitude.tolist() == [0, 1, 9, 9, 0, 0] and table.kind.tolist() == ["off by one", "right"]
    for lengths in itertools.product((7, 8, 9), (7, 8, 9), (7, 8, 9, 10)):
        try:
            drawn = sample_additions(lengths, 300, seed=1)
        except ScopeError:
            assert lengths[2] not in (max(lengths[:2]), max(lengths[:2]) + 1 if lengths[0] == lengths[1] else 0)
            continue
        assert all((len(str(a)), len(str(b)), len(str(a + b))) == lengths for a, b in drawn)
        table = analyze_errors(drawn, [str(a + b) for a, b in drawn])
        assert table.right.all() and not digit_errors(table).wrong.any() and (table.length_match == (lengths[2] == max(lengths[:2]))).all()
        assert lengths[0] != lengths[1] or lengths[2] == lengths[0] or all(add_carries(a, b)[-1] for a, b in drawn)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.sampled_from([2, 4, 10]), st.integers(1, 4))
def test_columns_add_up_if_groups_mean_the_same_places(a, b, base, size):
    lengths = [len(to_base(n, base)) for n in (a, b)]
    assert column_sum(a, b, base, size, "r2l") == a + b
    same = lengths[0] % size == lengths[1] % size
    if same or min(lengths) > size:
        assert (column_sum(a, b, base, size, "l2r") == a + b) == same


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 4**7), st.integers(0, 4**7), st.text("0123", max_size=9), st.sampled_from(["l2r", "r2l"]))
def test_every_answer_has_one_kind(a, b, answer, way):
    kind = error_kind((a, b), answer or None, 4, 2, way)
    assert kind in ERROR_KINDS and (kind == "right") == (answer == to_base(a + b, 4)) and (kind == "no answer") == (answer == "")
    table = analyze_errors([(a, b)], [answer or None], 4, 2, way)
    assert len(digit_errors(table)) == (len(answer) if len(answer) == len(to_base(a + b, 4)) and answer else 0)


def test_kinds_of_error():
    kinds = {"11831536": "right", "11830536": "off by one", "1183136": "dropped digit", "11851536": "one digit wrong", "12345678": "more digits wrong", "42": "wrong length"}
    assert {answer: error_kind((8302080, 3529456), answer) for answer in kinds} == kinds
    assert error_kind((123, 45678), "57978") == "left-aligned sum" and error_kind((900900, 200200), str(column_sum(900900, 200200, carries=False))) == "sum without carries"
    table = analyze_errors([(1, 2), (1, 2), (55, 55)], ["3", None, "100"])
    assert error_diagnosis(table).counts()["no answer"] == 1 and accuracy_by(table, ["length_match", "carries"]).n.tolist() == [1, 2] and digit_errors(table).offset.tolist() == [0, 0, 9, 0]


@pytest.mark.parametrize("pattern, rule", [(r"\d", "single digits"), (r"\d{1,3}", "3 from the left"), (r"\d{1,2}", "2 from the left"), (r"\d{1,3}(?=(\d{3})*(?!\d))", "3 from the right"), (r"0|[1-9]+", "by the pieces")])
def test_the_rule_is_found(pattern, rule):
    assert number_rule(cutting(pattern)) == rule == number_rules({"own": cutting(pattern)}).loc["own", "rule"]


def test_the_whole_catalogue():
    odd = ["-12", "+7", "0012", "1.5e-7", "1" * 40, "٣١٤", "१२३४", "12", "\ud800 12 \udfff", "1\x002", " 7", "½ ² 5", "\u202e12"]
    for name, tokenizer in named_tokenizers().items():
        for text in odd:
            assert "".join(number_pieces(text, tokenizer)) == "".join(c for c in text if c.isdecimal()), (name, text)
            assert all(0 <= a < b <= len(text) and any(c.isdecimal() for c in piece) for a, b, piece in tokens_with_digits(text, tokenizer))
        assert number_rule(tokenizer, draws=2) in {"single digits", "3 from the left", "3 from the right", "by the pieces"}
        with pytest.raises(ScopeError, match="Nothing to cut"):
            tokens_with_digits("", tokenizer)
    found = number_rules(["smollm2", "gpt4o", "gpt2"], draws=3)
    assert found.rule.tolist() == ["single digits", "3 from the left", "by the pieces"] and found.loc["gpt4o", "1,234,567"] == "1|234|567"


def test_prompts_hold_what_was_asked():
    problem = PROBLEMS[0]
    shots = sample_shots(problem, 4)
    assert problem not in shots and all([len(str(n)) for n in (*p, sum(p))] == [7, 7, 8] for p in shots) and len(sample_shots((0, 1), 70)) == 70
    prompt, again, total = addition_prompt(problem, shots, "nosep", repeat="comma_r2l", answer="nosep", spaces=2)
    assert len(prompt) == 10 and prompt[0]["role"] == "system" and prompt[-1]["content"] == f"{problem[0]}  +  {problem[1]}  =" and again.count(",") == 4 and total == str(sum(problem))
    assert prompt[2]["content"].startswith(f"{shots[0][0]:,}  +") and prompt[2]["content"].endswith(str(sum(shots[0])))
    assert addition_prompt((1, 2), [(3, 4)], chat=False) == ("3+4=7\n1+2=", "", "3")


def test_four_architectures_are_measured_and_left_alone(reader):
    ids = torch.tensor([reader.tokenizer("1+2=")["input_ids"]])
    plain = reader.model(ids).logits
    made, again, control = (f(reader, PROBLEMS, **technique["example"]) for f in (addition_accuracy, addition_accuracy, random_cut_accuracy))
    assert made.equals(again) and len(made) == 5 and np.isfinite(made.logprob).all() and (made.digit_logprob > made.logprob).all() and not made.logprob.equals(control.logprob)
    prompts = [addition_prompt(p, sample_shots(p, 1, i), "comma_r2l") for i, p in enumerate(PROBLEMS)]
    expected = answer_logprobs(reader, [p for p, _, _ in prompts], [t for _, _, t in prompts])
    np.testing.assert_allclose(made.logprob, expected, atol=1e-3)
    neutral = addition_accuracy(reader, PROBLEMS, **technique["neutral"], shots=1, modes=["logprob"])
    np.testing.assert_allclose(neutral.logprob, neutral.digit_logprob, atol=1e-4)
    assert torch.equal(reader.model(ids).logits, plain) and "right" not in neutral


def test_any_function_can_be_asked():
    add = lambda prompt: str(sum(int(read_number(part)[0]) for part in prompt[-1]["content"].rstrip("=").split("+")))
    for form in FORMS:
        table = addition_accuracy(add, PROBLEMS, form=form, shots=2)
        assert table.right.all() and table.format_match.all() == (form == "nosep")
    assert random_cut_accuracy(add, PROBLEMS, form="foo_l2r").right.all() and not addition_accuracy(lambda p: "\ud800\x00", PROBLEMS).right.any()


def test_the_picture_marks_what_is_wrong_and_what_is_cut():
    cut = lambda way: lambda digits: digit_groups(digits, 3, way)
    left, right, bad = (column_sum_svg(8302080, 3529456, cut(w), answer) for w, answer in (("l2r", None), ("r2l", None), ("r2l", "11831636")))
    assert left.count("✂") == 4 and right.count("✂") == 0 and right.count("✗") == 0 and bad.count("✗") == 1 and "answered 11831636" in bad
    assert column_sum_svg(1, 2, cut("r2l"), "").count("✗") == 0 and column_sum_svg(1, 2, cut("r2l"), "123").count("✗") == 2
    assert column_sum_svg(10**40, 3, lambda digits: list(digits)).count("<rect") == 41 + 1 + 41
    for foreign in ('"><script>alert(1)</script>', "1e5", "٣"):
        with pytest.raises(ScopeError, match="Not an answer"):
            column_sum_svg(1, 2, cut("r2l"), foreign)


def test_rewriting(tmp_path):
    for row, task in zip(rewrite_rows([(27, 6)] * 4, REWRITES), REWRITES):
        assert row[0] == REWRITES[task] and row[-1] == ";" and row.count("=") == 1 + (" to " in task) and "".join(row[row.index("=") + 1:-1]).rpartition("=")[2] == to_base(33, 4)
    one, two = (train_rewriter(tmp_path / f"{n}.safetensors", steps=2) for n in "ab")
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), two.model.parameters()))
    problems = draw_problems(40, seed=5)
    answers = adder_answers(shipped("rewriter").scope, problems, "r2l", rows=rewrite_rows(problems, ["r2l"] * 40, answers=False))
    assert all(a is None or set(a) <= set("0123") for a in answers) and not math.isnan(analyze_errors(problems, answers, 4, 2).right.mean())


@pytest.mark.parametrize("wrong, message", [
    (lambda: write_number("-12"), "Not a whole number"), (lambda: write_number("1e5"), "Not a whole number"), (lambda: write_number("\ud800"), "Not a whole number"), (lambda: write_number("1\x002"), "Not a whole number"),
    (lambda: write_number(""), "Not a whole number"), (lambda: write_number(12, "comma"), "Unknown form of numbers: 'comma'"), (lambda: write_number(12, "semicolon_l2r"), "followed by _l2r"),
    (lambda: error_kind((1, 2), "x"), "Not an answer in base 10"), (lambda: error_kind((1, 2), "7", 4), "Not an answer in base 4"), (lambda: analyze_errors([], []), "Nothing to analyse: 0 problems"),
    (lambda: analyze_errors([(1, 2)], []), "1 problems and 0 answers"), (lambda: addition_accuracy(str, []), "Nothing to ask: 0 problems"), (lambda: addition_accuracy(str, PROBLEMS, modes=["guess"]), "modes guess"),
    (lambda: addition_accuracy(str, PROBLEMS, shots=-1), "-1 shots"), (lambda: addition_accuracy(str, [(-1, 2)], shots=0), "Not a whole number")])
def test_bad_input_is_refused(wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong()


def test_leading_zeros_other_digits_and_the_context(scope):
    assert write_number("007", "comma_r2l", 2) == "0,07" and read_number("٣٬") == ("3", "٣") and error_kind((1, 2), "٣") == "right" and write_number("٠١٢٣") == "٠١٢٣"
    assert len(write_number(10**39, "space_r2l").split()) == 14
    short = Scope(tiny("llama", vocab_size=scope.vocab_size), scope.tokenizer)
    with pytest.raises(ScopeError, match="context"):
        addition_accuracy(short, PROBLEMS, shots=8)
