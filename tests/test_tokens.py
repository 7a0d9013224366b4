"The tokens of any tokenizer tile the text: same bytes, offsets in order and without gaps."
import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tokenscope.show.marks import box_text, mark_of, token_boxes, visible_parts, visible_text
from tokenscope.text.names import ScopeError
from tokenscope.text.tokens import Tokens, char_index, piece_text, token_bytes, tokens_of

CORPUS = ["The quick brown fox jumps over the lazy dog.", "All human beings are born free and equal in dignity and rights.",
          "naïve café, 日本語, नमस्ते, مرحبا", "def f(x):\n\treturn x ** 2\n"] * 5
FAMILY = "\U0001F468\u200d\U0001F469\u200d\U0001F467"
NASTY = ["", " ", "\0", "\n\n\t x", "😀", FAMILY, "🇫🇷🇩🇪", "👍🏽", "नमस्ते दुनिया", "السلام عليكم", "\u202eabc\u202c", "\ufeffa", "</script><img onerror=x>", "▁a ▁", "<0x41>", "a  b"]


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                      special_tokens=["<s>", "</s>"]))
    return t


def llama_style():
    "SentencePiece BPE as in Llama 2: ▁ for the space, a space put first, bytes as <0xE2>."
    base = Tokenizer(models.BPE())
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    base.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>", "<s>"]))
    vocab = base.get_vocab()
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in json.loads(base.to_str())["model"]["merges"]]
    for b in range(256):
        vocab.setdefault(f"<0x{b:02X}>", len(vocab))
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    t.normalizer = base.normalizer
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens(["<s>"])
    return t


def unigram():
    "T5 and XLM-R: Unigram with Metaspace, and byte fallback as in ALBERT's successors."
    base = Tokenizer(models.Unigram())
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=150, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"))
    pieces = [tuple(p) for p in json.loads(base.to_str())["model"]["vocab"]] + [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    t = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(), decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return t


def word_piece():
    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer, t.decoder = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    t.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]"]))
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return t


MADE = {f.__name__: f() for f in (byte_level, llama_style, unigram, word_piece)}
LOSSLESS = ["byte_level", "llama_style"]


def check_tiling(tokens, text):
    assert b"".join(r for r, s in zip(tokens.raw, tokens.special) if r) == text.encode() and tokens.text == text
    at = 0
    for start, end in tokens.offsets:
        assert start <= at <= max(end, at) and end >= at - 1
        at = max(at, end)
    assert at == len(text) or not len(tokens)
    covered = [i for g in token_boxes(tokens) for i in g]
    assert covered == list(range(len(tokens)))


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=st.text(max_size=40) | st.sampled_from(NASTY))
@settings(max_examples=80, deadline=None)
def test_pieces_tile_the_text(name, text):
    coded = MADE[name].encode(text)
    if any(t == "<unk>" for t in coded.tokens) or "<0x" in text or "▁" in text:  # the vocabulary itself cannot tell these apart
        return
    for known in ({}, {"text": text}, {"text": text, "offsets": coded.offsets}):
        check_tiling(tokens_of(MADE[name], coded.ids, **known), text)


@pytest.mark.parametrize("name", list(MADE))
@given(text=st.text(max_size=40) | st.sampled_from(NASTY))
@settings(max_examples=60, deadline=None)
def test_a_known_text_with_offsets_is_never_lost(name, text):
    coded = MADE[name].encode(text)
    tokens = tokens_of(MADE[name], coded.ids, text, coded.offsets)
    assert len(tokens) == len(coded.ids) == len(tokens.raw)
    assert all(0 <= a <= b <= len(text) or tokens.text != text for a, b in tokens.offsets)
    assert all(isinstance(visible_text(p), str) for p in tokens)


def test_wordpiece_keeps_capitals_and_spaces_of_the_text():
    text = "The  quick Fox jumps."
    coded = MADE["word_piece"].encode(text)
    tokens = tokens_of(MADE["word_piece"], coded.ids, text, coded.offsets)
    assert tokens.special[0] and tokens.special[-1] and tokens[0] == "[CLS]"
    assert "".join(p for p, s in zip(tokens, tokens.special) if not s) == text


def test_wrapped_tokenizers_and_special_tokens():
    wrapped = PreTrainedTokenizerFast(tokenizer_object=MADE["byte_level"], bos_token="<s>", eos_token="</s>")
    ids = [wrapped.bos_token_id, *wrapped("hi 😀").input_ids, 10_000, -100]
    tokens = tokens_of(wrapped, np.array([ids]), text="hi 😀")
    assert tokens.special == [True] + [False] * (len(ids) - 3) + [True, True] and tokens[0] == "<s>" and tokens[-2] == "[10000]"
    check_tiling(tokens, "hi 😀")
    written = tokens_of(wrapped, wrapped("<s>hi</s>").input_ids, text="<s>hi</s>")
    check_tiling(written, "<s>hi</s>")
    assert list(tokens_of(None, [5, 7])) == ["5", "7"]
    assert len(tokens_of(wrapped, [])) == 0


def test_tiktoken_interface():
    class Bytes:
        special_tokens_set = {"<end>"}
        def decode_single_token_bytes(self, i): return {0: b"a\xf0\x9f", 1: b"\x98\x80", 2: b"<end>"}[i]
        def encode_single_token(self, text): return 2
    tokens = tokens_of(Bytes(), [0, 1, 2, 9])
    assert tokens.text == "a😀<end>" and tokens.offsets[:2] == [(0, 2), (1, 2)] and tokens.special == [False, False, True, True]


@given(st.binary(max_size=300))
@example(b"\xe2\x80" * 80)
@example(b"a" * 63 + "é".encode() + b"\xff")
@settings(deadline=None)
def test_broken_bytes_decode_as_python_does(data):
    text, index = char_index(data)
    assert text == data.decode("utf-8", "replace") and len(index) == len(data) + 1 and index == sorted(index) and index[-1] == len(text)
    assert piece_text(data).encode().decode() is not None


def test_linear_time():
    "Sixteen times the text takes about sixteen times as long; were it quadratic, 256 times."
    wrapped = MADE["byte_level"]

    def seconds(work):
        start = time.process_time()
        work()
        return max(time.process_time() - start, 0.01)

    def cut(n):
        text = "The quick ünï 😀 brown fox. " * n
        ids = wrapped.encode(text).ids
        return seconds(lambda: check_tiling(tokens_of(wrapped, ids, text), text))

    assert cut(1600) < 64 * cut(100)
    assert seconds(lambda: char_index(b"\xff" * 160_000)) < 64 * seconds(lambda: char_index(b"\xff" * 10_000))


def test_boxes_join_what_makes_one_sign():
    for sign in ("😀", FAMILY, "🇫🇷", "👍🏽", "दु", "❤\ufe0f"):
        coded = MADE["byte_level"].encode("go " + sign + "!")
        tokens = tokens_of(MADE["byte_level"], coded.ids)
        assert any(box_text(tokens, b).strip() == sign for b in token_boxes(tokens)), sign
    flags = Tokens(list("🇫🇷🇩🇪"))
    assert [len(b) for b in token_boxes(flags)] == [2, 2]
    assert [len(b) for b in token_boxes(Tokens(["a", "\u200d", "b", "\u0301"], special=[False, False, False, True]))] == [1, 1, 1, 1]


@given(st.text(alphabet=st.characters(), max_size=30))
def test_marks_never_let_a_control_through(text):
    shown = "".join(t for t, _ in visible_parts(text))
    shown.encode()  # no lone surrogate is left
    assert not any(c < " " or c in "\x7f\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200e\u200f" for c in shown)
    assert all(mark_of(c) is None for c in visible_text(text) if c not in "\u200c\u200d\ufe0e\ufe0f" and not 0xE0020 <= ord(c) <= 0xE007F)


def test_tokens_from_plain_strings_and_errors():
    t = Tokens(["a", " b", b"\xe2"])
    assert t == ["a", " b", "\\xE2"] and t[1:] == [" b", "\\xE2"] and t != ["a"] and list(t)[0] == "a" and t.special == [False] * 3
    for bad, words in ((lambda: Tokens(["a"], ids=[1, 2]), "Token fields differ"), (lambda: tokens_of(MADE["unigram"], [[1], [2]]), "Ids of more than one text"),
                       (lambda: token_bytes(object(), [1]), "Not a tokenizer")):
        with pytest.raises(ScopeError, match=words):
            bad()
