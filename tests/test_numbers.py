"Numbers in text, their groups, their sums, and the rows that small adders learn from."
import random
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tokenscope.learn.adders import NUMBER_SCHEMES, adder_answers, addition_batch, addition_rows, draw_problems, number_tokens, number_words, train_adder
from tokenscope.text.names import ScopeError
from tokenscope.text.numbers import add_carries, chunk_number, digit_groups, number_spans, plain_number, sample_additions, to_base
from tokenscope.learn.small_models import word_tokenizer

DIGITS = st.text("0123456789", min_size=1, max_size=40)


@given(DIGITS, st.integers(1, 6))
def test_groups_tile_and_mirror(digits, size):
    left, right = digit_groups(digits, size, "l2r"), digit_groups(digits, size)
    assert "".join(left) == "".join(right) == digits and all(0 < len(g) <= size for g in left + right)
    assert [g[::-1] for g in reversed(left)] == digit_groups(digits[::-1], size)
    assert (left == right) == (len(digits) % size == 0 or len(digits) < size)


@given(st.integers(0, 10**40))
def test_commas(n):
    assert chunk_number(n) == f"{n:,}" and number_spans(f"x {n:,} y")[0].value == n


@given(DIGITS, st.text("0123456789", max_size=18), st.integers(-30, 30))
def test_plain_notation_keeps_the_value(whole, part, exponent):
    written = whole + ("." + part if part else "") + (f"e{exponent}" if exponent else "")
    assert Decimal(plain_number(written)) == Decimal(written)


@pytest.mark.parametrize("text, found", [
    ("", []), ("no digits", []), ("-12 +7 00042", ["12", "7", "00042"]), ("6.02e-23", ["6.02e-23"]), ("1" * 40, ["1" * 40]), ("1.2.3 10.0.0.1", []),
    ("٤٢ ४२", ["٤٢", "४२"]), ("\ud800 7\x00 8", ["7", "8"]), ("3 4 5", ["3", "4", "5"]), ("1,23", ["1", "23"]), ("12:30", ["12", "30"]), ("9.", ["9"]), (".5", []),
])
def test_numbers_in_odd_text(text, found):
    assert [s.text for s in number_spans(text)] == found and all(text[s.start:s.end] == s.text for s in number_spans(text))


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(2, 10))
def test_carries_and_bases(a, b, base):
    carries = add_carries(a, b, base)
    lost = sum(int(d) for n in (a, b) for d in to_base(n, base)) - sum(int(d) for d in to_base(a + b, base))
    assert sum(carries) * (base - 1) == lost and int(to_base(a, base), base) == a


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1), st.sampled_from([4, 10]))
def test_lengths_are_as_asked(la, lb, more, base):
    lc = max(la, lb) + more
    assert {tuple(len(to_base(n, base)) for n in (a, b, a + b)) for a, b in sample_additions((la, lb, lc), 20, base)} == {(la, lb, lc)}


@pytest.mark.parametrize("call, message", [
    (lambda: chunk_number("1.5"), "Not a whole number"), (lambda: digit_groups("12", 0), "at least one digit"), (lambda: digit_groups("12", 2, "up"), "Unknown direction"),
    (lambda: plain_number("--"), "Not a number"), (lambda: plain_number("1e"), "Not a number"), (lambda: plain_number("1e5e3"), "Not a number"), (lambda: plain_number("1e999"), "Exponent too large"), (lambda: to_base(3, 16), "Bases from 2"),
    (lambda: sample_additions((7, 7, 9)), "No such sums"), (lambda: sample_additions((3, 3, 2)), "No such sums"), (lambda: number_tokens("1", "x"), "No way to write"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ScopeError, match=message):
        call()


@pytest.mark.parametrize("scheme", NUMBER_SCHEMES)
def test_every_scheme_writes_all_digits_in_the_vocabulary(scheme):
    words = set(number_words())
    for n in (0, 3, 4, 27, 1023, 4**10 - 1):
        tokens = number_tokens(to_base(n, 4), scheme, deal=random.Random(n))
        assert set(tokens) <= words and "".join(c for t in tokens for c in t if c.isdigit()) == to_base(n, 4)


def test_wrong_suffixes_are_the_right_ones_in_another_order():
    right, wrong = (number_tokens("1231023", s, deal=random.Random(3)) for s in ("compound", "wrong suffix"))
    assert sorted(t[-1] for t in right[:-1]) == sorted(t[-1] for t in wrong if t[-1].isalpha()) and right != wrong


def test_only_the_answer_is_learnt():
    tokenizer = word_tokenizer(number_words())
    rows = addition_rows(draw_problems(20), "compound")
    ids, labels = addition_batch(tokenizer, rows)
    for row, tokens, label in zip(rows, ids, labels):
        learnt = tokenizer.convert_ids_to_tokens(label[label != -100])
        assert learnt == row[row.index("=") + 1:] and tokens[len(row):].eq(tokenizer.pad_token_id).all()


def test_an_adder_that_knows_by_heart_is_read_right():
    problems = [(1, 2), (27, 5), (60, 60)] * 20
    scope, losses = train_adder("r2l", steps=150, batch_size=60, problems=lambda step: problems, n_layers=1)
    assert adder_answers(scope, problems, "r2l") == [to_base(a + b, 4) for a, b in problems] and losses[-1] < 0.1
    assert torch.equal(*(train_adder("r2l", steps=2, batch_size=8, n_layers=1)[0].model.lm_head.weight for _ in range(2)))
