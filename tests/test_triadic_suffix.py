"Numbers in suffix notation: digit for digit, in every tokenizer of the catalogue, and as rows of models."
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import tiny
from tokenscope.data.tokenizer_catalogue import real_tokenizer, tokenizer_catalogue
from tokenscope.text.encodings import middle_encoding
from tokenscope.text.names import ScopeError
from tokenscope.text.numbers import group_number, group_value, read_groups
from tokenscope.core.scope import Scope
from tokenscope.tokenizers.triadic_suffix import TriadicTokenizer, TSTScheme, add_number_rows, mark_numbers, number_names, number_rows, shuffled_suffix, suffix_text, technique, triadic_suffix, unmark_numbers

PLAIN, PAPER = TSTScheme(), TSTScheme(pad="frac")
digits = lambda most: st.text("0123456789", min_size=1, max_size=most)
numbers = st.one_of(digits(18), st.builds("{}.{}".format, digits(18), digits(15)))
AWKWARD = ["", "  ", "5", "pay 12345.90 now", "12 apples", "I have 12", "  12  34\n\n56.00", "a-5, +7 and −8%; ½12²", "$1,234.50 or 1e5", "٣٤ and 12٣", "nul\0 12\0 34", "שלום 123 עולם 4.5!", "1" * 40 + " 7", "007 0.100",
           "x345km 345k", "12中文34日本 5", "v1.2.3, 10.0.0.1, 2020-05-01", "👩‍👩‍👧7👧 12.", "<|endoftext|>5 </s>12", "1e-400 1e999 2"]


@pytest.mark.parametrize("text, expected", [("12345678.1234", "12m 345k 678 . 123p 400pp"), ("0.0045", "0 . 004p 500pp"), ("1.23e-4", "0 . 000p 123pp"), ("1234%", "1k 234 %"), ("100400", "100k 400"), ("1,234", "1k 234"), ("٣٤٥٦", "3k 456")])
def test_the_papers_examples(text, expected):
    assert suffix_text(text, PAPER) == expected and PAPER.encode_number(text.rstrip("%")) == expected.rstrip(" %").split()


@settings(deadline=None, max_examples=200)
@given(numbers)
def test_the_sum_rule_and_the_way_back_are_exact(text):
    for scheme in (PLAIN, TSTScheme(compact=False), TSTScheme(1, tuple("abcdefghijklmnoqrs"), max_frac_groups=15), TSTScheme(4)):
        tokens = scheme.encode_number(text)
        assert scheme.decode_number(tokens) == text
    assert group_value(read_groups(text)) == Decimal(text) and group_number(read_groups(text)) == text
    for pad in ("frac", "both"):
        scheme = TSTScheme(pad=pad)
        tokens = scheme.encode_number(text)
        again = scheme.decode_number(tokens)
        assert Decimal(again) == Decimal(text) and scheme.encode_number(again)[-1] == tokens[-1] and all(len(t.rstrip("kmbtqp")) == 3 for t in tokens if pad == "both" and t != ".")


def test_padding_loses_trailing_zeros_and_nothing_else_does():
    tenths = ("0.1", "0.10", "0.100")
    assert len({tuple(PAPER.encode_number(x)) for x in tenths}) == 1 and len({tuple(PLAIN.encode_number(x)) for x in tenths}) == 3


def test_sizes_of_the_vocabulary():
    assert len(number_names(TSTScheme(pad="both"), bare=False)) == 10_000 and len(number_names(TSTScheme(pad="both"))) == 11_000
    for n, suffixes, size in ((1, 18, 340), (2, 9, 1_780), (3, 6, 12_220)):
        names = number_names(TSTScheme(n, tuple("abcdefghijklmnoqrs"[:suffixes]), max_frac_groups=-(-15 // n)), 19, 15)
        assert len(names) == len(set(names)) == size


@settings(deadline=None, max_examples=200)
@given(st.text(st.one_of(st.sampled_from("0123456789.,%e ⟦⟧-k"), st.characters())))
def test_marks_lose_nothing_and_text_without_numbers_is_left_alone(text):
    assert unmark_numbers(mark_numbers(text)) == text
    bare = "".join(c for c in text if not c.isdecimal())
    assert suffix_text(bare) == bare


@pytest.mark.parametrize("tokens", [[], ["."], ["12m", "345"], ["345", "12k"], ["12k", "345k"], ["12k", "34"], ["1", "2k"], ["5p"], ["0", "5p"], ["1z"], ["k"], ["1", ".", "5pp"], ["1k", "234", "567"]])
def test_what_is_no_number_is_refused(tokens):
    with pytest.raises(ScopeError):
        PLAIN.decode_number(tokens)


@pytest.mark.parametrize("text", ["", "abc", "1" * 40, "0." + "1" * 16, "1.2.3", "-5", "1e-20", "½", "nan", "1\0", "\ud800"])
def test_numbers_that_cannot_be_written_are_refused(text):
    with pytest.raises(ScopeError):
        PLAIN.encode_number(text)


@pytest.mark.parametrize("wrong", [dict(group_size=0), dict(pad="left"), dict(int_suffixes=("k", "k")), dict(int_suffixes=("p",)), dict(int_suffixes=("1",)), dict(int_suffixes=("",))])
def test_schemes_that_cannot_be_meant(wrong):
    with pytest.raises(ScopeError, match="Not a scheme of suffixes"):
        TSTScheme(**wrong)


@pytest.mark.parametrize("name", [e.name for e in tokenizer_catalogue()])
def test_every_tokenizer_gives_the_text_back(name):
    own = real_tokenizer(name)
    changed = {text: own.decode(own(text, add_special_tokens=False)["input_ids"]) for text in AWKWARD}  # some tokenizers change a text themselves
    full, bare = own("a")["input_ids"], own("a", add_special_tokens=False)["input_ids"]
    first_id = triadic_suffix(own).first_id  # asked once: it reads the whole vocabulary
    for option, texts in (("compound", AWKWARD), ("marker", AWKWARD[1::2])):  # what lies between the numbers goes the same way in both
        made = triadic_suffix(own, option=option, first_id=first_id)
        for text in texts:
            ids = made.encode(text, add_special_tokens=False)
            assert made.decode(ids) in (text, changed[text])
            assert max(ids, default=0) < len(made)
        for text in texts[2:5]:
            assert len(made.encode(text)) - len(made.encode(text, add_special_tokens=False)) == len(full) - len(bare)
        assert made.decode(made.encode("half \ud800 a pair 12", add_special_tokens=False)) == "half \ufffd a pair 12"
        assert [made.names[i - made.first_id] for i in made.encode("It is 12345.6!", False) if i >= made.first_id] == made.scheme.encode_number("12345.6")
    plain = "No numbers: שלום,\0 x²!"
    assert made.encode(plain) == own(plain)["input_ids"] and triadic_suffix(name, **technique["neutral"]).encode(AWKWARD[3]) == own(AWKWARD[3])["input_ids"]
    assert own.decode(own("a", add_special_tokens=False)["input_ids"] + middle_encoding(own, "  b c")) == "a  b c"


def test_numbers_by_value_and_the_control():
    own = real_tokenizer("smollm2")
    assert triadic_suffix(own, exact=False).decode(triadic_suffix(own, exact=False).encode("It is 1,234 or 1.5e3.")) == "It is 1234 or 1500."
    made, control = triadic_suffix(own), shuffled_suffix(own, seed=1)
    text = "From 12345678 to 87654321.25 and 5."
    ids, dealt = made.encode(text), control.encode(text)
    assert dealt == control.encode(text) != ids and len(dealt) == len(ids) and dealt != shuffled_suffix(own, seed=2).encode(text)
    letters = lambda t, row: sorted("".join(c for i in row if i >= t.first_id for c in t.names[i - t.first_id]))
    assert letters(control, dealt) == letters(made, ids)
    assert made.coverage([text, text])["seen"] == 9 and made.coverage([text])["numbers"] == made.coverage([text])["as tokens"] == 3
    assert made([text, "x"], padding=True, return_tensors="pt")["input_ids"].shape[0] == 2 and made("1 x")["input_ids"] == made.encode("1 x")
    assert made.decode([made.ids["12k"], made.ids["34"]]) == "⟦12k⟧⟦34⟧"  # no number, and not shown as one
    with pytest.raises(ScopeError, match="No such token"):
        made.decode([len(made)])


@pytest.mark.parametrize("wrong", [lambda: triadic_suffix(3), lambda: triadic_suffix("no such tokenizer"), lambda: triadic_suffix("smollm2", option="both"), lambda: triadic_suffix(Scope(tiny("llama")))])
def test_what_cannot_be_given(wrong):
    with pytest.raises(ScopeError):
        wrong()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_models_keep_their_logits_bit_for_bit(family):
    own = real_tokenizer("smollm2")
    scope = Scope(tiny(family, vocab_size=len(own) + 3), own)  # three rows that no token uses
    before, plain = {n: p.clone() for n, p in scope.model.state_dict().items()}, scope.logits("The cat sat, and no number.")
    scheme = TSTScheme(2)  # a thousand rows: the page has all 12,211
    for init in ("mean", "additive"):
        grown = triadic_suffix(scope, init=init, scheme=scheme)
        made = grown.logits("The cat sat, and no number.")
        assert torch.equal(made[..., :len(own) + 3], plain) and made.shape[-1] == len(grown.tokenizer) == grown.vocab_size and made.isfinite().all()
        assert grown.logits("It is 12345.60.").isfinite().all() and isinstance(grown.generate("It is 12345.60.", max_new_tokens=3), str)
    assert all(torch.equal(before[n], p) for n, p in scope.model.state_dict().items()) and scope.model.config.vocab_size == len(own) + 3
    weight, names = grown.structure.embedding.weight, grown.tokenizer.ids
    torch.testing.assert_close(weight[names["12k"]] - weight[names["12m"]], weight[names["34k"]] - weight[names["34m"]], atol=1e-5, rtol=0)  # additive
    with pytest.raises(ScopeError, match="Rows do not fit"):
        add_number_rows(scope.model, TriadicTokenizer(own))
    with pytest.raises(ScopeError, match="Unknown way to begin"):
        number_rows(weight, grown.tokenizer, "noise")
