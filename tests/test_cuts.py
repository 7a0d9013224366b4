"Cuts of one text by several tokenizers: aligned, escaped, whatever the text."
import pytest
from hypothesis import given, settings, strategies as st
from transformers import AutoTokenizer

from tokenscope.data.cuts import cuts, cuts_html, token_counts
from tokenscope.data.tokenizer_catalogue import named_tokenizers, tokenizer_of
from tokenscope.data.tokenizer_catalogue import real_tokenizer
from tokenscope.text.names import ScopeError

NAMES = ["smollm2", "gpt2", "llama2"]
ODD = ["\ud800 half", "a\x00b", "\x00", "Привет 世界 مرحبا שלום", "-12 +7 00042 6.02e-23", "1" * 40, "٤٢ ४२ ４２", "👩‍🚀👨‍👩‍👧 e\u0301", " ", "\n\n", "<script>alert(1)</script>", "\u202eabc", "﷽" * 5]


def tiles(made):
    for name, tokens in made.tokens.items():
        at = 0
        for a, b in tokens.offsets:
            assert a <= at <= max(b, at), (name, a, b, at)
            at = max(at, b)
        assert at == len(made.text) or at < len(made.text) and f"<th>{name}</th>" in cuts_html(made) and "∅" in cuts_html(made), name


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_tiled_and_counted(text):
    made = cuts(text, NAMES)
    tiles(made)
    counts = token_counts(text, NAMES)
    assert {name: len(t) for name, t in made.tokens.items()} == counts.tokens.to_dict()
    assert "<script" not in cuts_html(made)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec=None), min_size=1, max_size=90))
def test_any_text(text):
    made = cuts(text, NAMES)
    tiles(made)
    html = cuts_html(made, width=16)
    assert html.count("<table") == -(-len(made.text) // 16)
    assert made.agreement().to_numpy().min() >= 0 and (made.agreement().to_numpy().diagonal() == 1).all()


def test_every_column_is_used_once_in_each_line():
    import re
    made = cuts("The quick 日本 fox 👩‍🚀 jumps over 1234567 lazy dogs.", NAMES)
    for table in cuts_html(made, width=10).split("<table")[1:]:
        columns = table.count("<col ") - 1
        for row in re.findall(r"<tr>.*?</tr>", table):
            assert sum(map(int, re.findall(r"colspan=(\d+)", row))) == columns


def test_names_files_and_objects(tmp_path):
    gpt2 = real_tokenizer("gpt2")
    gpt2.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    gpt2.save_pretrained(tmp_path / "folder")
    found = named_tokenizers(["gpt2", str(tmp_path / "tokenizer.json"), tmp_path / "folder", gpt2])
    assert len(found) == 4 and len(set(token_counts("Ten green bottles, 1984.", found).tokens)) == 1
    assert list(named_tokenizers({"mine": gpt2})) == ["mine"] and list(named_tokenizers("gpt2")) == ["gpt2"]


def test_a_slow_tokenizer_too():
    class Slow:
        name_or_path, is_fast = "slow", False
        inner = real_tokenizer("gpt2")

        def __call__(self, *args, **more):
            return self.inner(*args, **more)

        def __getattr__(self, name):
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self.inner, name)

    assert token_counts(["Hello there"], [Slow()]).tokens.item() == 2


@pytest.mark.parametrize("call, message", [
    (lambda: cuts("", NAMES), "Nothing to cut"), (lambda: cuts("a", []), "No tokenizers given"),
    (lambda: token_counts([], NAMES), "No text to count"), (lambda: token_counts(["a", 3], NAMES), "must be strings"), (lambda: token_counts([""], NAMES), "No text to count"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ScopeError, match=message):
        call()


def test_an_unknown_name_is_refused(monkeypatch):
    def refuse(*args, **more):
        raise OSError("no connection")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ScopeError, match="No such tokenizer.*smollm2, llama2"):
        tokenizer_of("no-such-one")
