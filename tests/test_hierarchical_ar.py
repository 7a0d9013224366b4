"Bytes in words: splitting rules, the hierarchical model, and measures by the byte."
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import FAMILIES, tiny_reader
from tokenscope.measure.byte_scores import (bits_per_byte, byte_boxes, byte_surprisal, layer_weights, passage_batches, passages, ratio_draws, spelling_targets, stack_flops, target_costs,
                                         word_accuracy, word_scores)
from tokenscope.text.names import ScopeError
from tokenscope.text.words import RandomSplitter, continued, fixed_splitter, named_splitter, perturb, unicode_splitter, whitespace_splitter
from tokenscope.learn.shipped import shipped
from tokenscope.tokenizers.hierarchical_ar import (END, PAD, STOP, HATConfig, HATModel, flops_per_byte, load_hat, random_boundaries, spelling_robustness,
                                                   technique, word_rows, word_tensor, word_targets)

RULES = ("whitespace", "unicode", "fixed 8", "fixed 1", "random 5.6")
TEXTS = ["Call me Ishmael. Some years ago, never mind how long", "  two  spaces\n", "x", "שלום עולם, مرحبا بالعالم", "a\0b\t" + "1234567890" * 4, "٣٤٥ १२३ 鯨は 👩‍🚀 e\u0301"]
SMALL = dict(d_byte=16, d_word=32, n_enc=1, n_dec=1, n_backbone=2, n_heads=2)


def small(seed=0, **fields):
    torch.manual_seed(seed)
    model = HATModel(HATConfig(**{**SMALL, **fields})).eval().requires_grad_(False)
    for p in model.parameters():  # an initial model is nearly linear
        if p.ndim >= 2:
            p.mul_(3)
    return model


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.mark.parametrize("rule", RULES)
@given(text=st.text(max_size=40) | st.text("aB1 _.\n鯨\u0301é", max_size=40), cap=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_rules_are_lossless_capped_and_causal(rule, text, cap):
    split = named_splitter(rule)
    words = split(text, cap)
    assert b"".join(words) == text.encode() and all(1 <= len(w) <= cap for w in words)
    for end in range(1, len(text)):
        first = split(text[:end], cap)
        assert first[:-1] == words[:len(first) - 1] and words[len(first) - 1].startswith(first[-1])


def test_rules_as_the_paper_says():
    assert unicode_splitter("Good day, Sir!") == [b"Good", b" day,", b" Sir!"]
    assert unicode_splitter("readMeNow") == [b"read", b"Me", b"Now"] and unicode_splitter("max_len_x") == [b"max_", b"len_", b"x"]
    assert whitespace_splitter("a b  c") == [b"a ", b"b  ", b"c"] and fixed_splitter(3)("abcdefgh") == [b"abc", b"def", b"gh"]
    assert unicode_splitter("a    b") == [b"a", b"    ", b"b"]
    text = "".join(random.Random(0).choices("abcdefg ", k=20_000))
    lengths = list(map(len, RandomSplitter(6)(text, 100)))
    assert abs(np.mean(lengths) - 6) < 0.3 and RandomSplitter(6, seed=1)(text) != RandomSplitter(6)(text)


@given(st.text("abc DEF\n.é", max_size=40), st.sampled_from(["permute", "replace", "delete", "caps"]), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_disturbed_texts_keep_their_words(text, kind, p, seed):
    made = perturb(text, kind, p, seed)
    assert made == perturb(text, kind, p, seed) and len(made.split()) == len(text.split())
    assert [c for c in made if c.isspace()] == [c for c in text if c.isspace()] and (kind == "caps" or perturb(text, kind, 0) == text)
    if kind == "permute":
        assert sorted(made) == sorted(text)


def test_nothing_leaks(model):
    ids = word_tensor([model.split(TEXTS[0])])
    changed = (ids[0] != PAD).nonzero().tolist()  # (word, byte)
    others = ids.repeat(len(changed) + 1, 1, 1)  # the last one stays as it is
    for other, (j, b) in zip(others, changed):
        other[j, b] = (other[j, b] + 1) % 128
    logits, embedded = model(others).logits, model.encode(others.flatten(0, 1)).unflatten(0, others.shape[:2])
    for (j, b), moved, e in zip(changed, (logits - logits[-1]).abs().amax(-1), (embedded - embedded[-1]).abs().amax(-1)):
        assert moved[:j].sum() < 1e-6 and moved[j, :b + 1].sum() < 1e-6  # words before, and bytes before in its own word
        assert (e > 1e-6).nonzero().flatten().tolist() == [j]  # both directions inside, none outside
        if j + 1 < ids.shape[1]:
            assert moved[j + 1, 0] > 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_batches_padding_and_caches_do_not_matter(rule):
    model = small(splitter=rule)
    together = byte_surprisal(model, TEXTS)
    for text, (nats, right) in zip(TEXTS, together):
        alone = byte_surprisal(model, [text])[0]
        assert len(nats) == len(text.encode()) and np.allclose(nats, alone[0], atol=1e-4) and (right == alone[1]).all()
        assert model.generate(text, 0) == text
    for text, heat in ((TEXTS[0], 0), (TEXTS[1], 1.0), (TEXTS[5], 0)):
        written = model.generate(text, 2, heat)
        assert written == model.generate(text, 2, heat, use_cache=False) and written.encode().startswith(text.encode()[:len(text.encode()) // 2])
    words = [b"whale ", b"a", b"unspeakably ", b"x" * 16]
    whole = model.encode(word_tensor([words])[0])
    assert all(torch.allclose(e, model.encode(word_tensor([[w]])[0])[0], atol=1e-5) for w, e in zip(words, whole))


def test_costs_are_the_loss(model):
    ids = word_tensor([model.split(t) for t in TEXTS])
    out = model(ids)
    total = sum(nats.sum() for nats, _ in byte_surprisal(model, TEXTS))
    count = (word_targets(ids.flatten(0, 1), 16) != -100).sum()
    assert out.loss.item() == pytest.approx(total / count.item(), rel=1e-4) and model(ids, labels=ids).logits is None
    assert bits_per_byte(model, TEXTS) == pytest.approx(total / np.log(2) / sum(len(t.encode()) for t in TEXTS))
    logits = out.logits[0, 1].log_softmax(-1)  # the second word, by hand
    word = list(model.split(TEXTS[0])[1])
    assert word_scores(model, TEXTS[0]).nats[1] == pytest.approx(-logits[range(len(word) + 1), [*word, END]].sum().item(), rel=1e-4)


def test_targets():
    assert word_targets(word_tensor([[b"ab", b"abc", bytes([STOP])]])[0], 3).tolist() == [[97, 98, END, -100], [97, 98, 99, -100], [STOP, -100, -100, -100]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_any_backbone(family, tmp_path):
    known = {**FAMILIES[family], "num_key_value_heads": 2, "intermediate_size": 48} if family != "gpt2" else {}
    model = small(backbone=dict(model_type=family, **known))
    assert model.generate("Call me", 4) == model.generate("Call me", 4, use_cache=False) and np.isfinite(bits_per_byte(model, TEXTS))
    test_nothing_leaks(model)
    model.save_pretrained(tmp_path)
    again = HATModel.from_pretrained(tmp_path).eval()
    ids = word_tensor([model.split(TEXTS[0])])
    assert all(torch.equal(p, q) for p, q in zip(again.state_dict().values(), model.state_dict().values())) and again.config.splitter == "whitespace"
    assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)


def test_it_learns():
    from tokenscope.learn.small_models import train_lm
    torch.manual_seed(0)
    model = HATModel(HATConfig(**SMALL))
    losses = train_lm(model, passage_batches(word_rows(model.split), ["to be or not to be, that is the question\n"], per_batch=1), 150, lr=5e-3, warmup=10)
    assert losses[-1] < losses[0] / 3 and all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.generate("to be or", 9).startswith("to be or not to be")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_token_models_by_the_byte(family):
    reader = tiny_reader(family)
    texts = TEXTS[:1] + TEXTS[2:]
    for text, (nats, right) in zip(texts, byte_surprisal(reader, texts)):
        ids = torch.tensor([[reader.tokenizer.bos_token_id, *reader.tokenizer(text)["input_ids"]]])
        whole = -reader.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()
        assert len(nats) == len(right) == len(text.encode()) and nats.sum() == pytest.approx(whole, rel=1e-3)
    with pytest.raises(ScopeError, match="longer than the context"):
        byte_surprisal(reader, ["word " * 100])


def test_the_front_door_and_its_control(model):
    texts = [" ".join(random.Random(i).choices("whale ship sea captain old white the a of".split(), k=30)) for i in range(4)]
    table, again, control = (f(model, texts, **technique["example"]) for f in (spelling_robustness, spelling_robustness, random_boundaries))
    assert table.equals(again) and table.index.tolist() == ["clean", "permute", "caps"] and table.rise["clean"] == 0 and model.config.splitter == "whitespace"
    assert (table.low <= table.rise + 1e-9).all() and (table.rise <= table.high + 1e-9).all() and not control.bits_per_byte.equals(table.bits_per_byte)
    assert spelling_robustness(model, texts, **technique["neutral"]).index.tolist() == ["clean"]
    targets = spelling_targets(texts, 5)
    assert all(any(context + word in t for t in texts) for context, word in targets) and len(targets) == 5
    nats, right = target_costs(model, targets)
    same, _ = target_costs(model, targets, "replace", 0)
    assert np.allclose(nats, same) and right.dtype == bool and ratio_draws(nats, nats).tolist() == [1] * 1000


def test_operations(model):
    one = flops_per_byte(model, ["abcdefgh"])
    parts = [stack_flops(model.encoder, [9], causal=False), stack_flops(model.backbone, [1]), stack_flops(model.decoder, [9]), 2 * 2 * 16 * 32]
    assert one == pytest.approx(sum(parts) / 8) and layer_weights(model.word_in) == 512


def test_pictures_escape():
    shown = byte_boxes([b"<b>", b"\xe9\xaf", b"\xa8&"], [0, 1, 2, 3, 4, 5, 6], "<script>", above="<w>")
    assert "<script>" not in shown and "<w>" not in shown and shown.count("<b>") == 3 and "E9" in shown and "&amp;" in shown and "&lt;w&gt;" in shown


def test_passages_are_whole():
    assert "".join(made := passages(["a bc " * 100, "x" * 900, "short"], 50)) == "a bc " * 100 + "\n" + "x" * 900 + "\nshort\n" and made[-1] == "short\n"


def test_mistakes(model, tmp_path):
    for call, words in ((lambda: whitespace_splitter("a\ud800b"), "Half a surrogate"), (lambda: fixed_splitter(0), "Not a length"),
                        (lambda: RandomSplitter(0.5), "Not a mean length"), (lambda: named_splitter("fixed x"), "Unknown rule"), (lambda: small(splitter="lines"), "Unknown rule"),
                        (lambda: perturb("a", "shuffle"), "Not a disturbance"), (lambda: perturb("a", p=2), "Not a disturbance"), (lambda: byte_surprisal(model, []), "No bytes"),
                        (lambda: bits_per_byte(model, ["a", ""]), "No bytes"), (lambda: word_tensor([]), "No words"), (lambda: word_tensor([[]]), "No words"),
                        (lambda: spelling_robustness(model, ["one word"]), "No word has eight"), (lambda: continued(["a"], True), "Not a length")):
        with pytest.raises(ScopeError, match=words):
            call()
    broken = small()
    broken.word_in.weight.fill_(float("nan"))
    with pytest.raises(ScopeError, match="no probabilities"):
        bits_per_byte(broken, "text")
    from safetensors.torch import save_file
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ScopeError, match="Not such a file of weights"):
        load_hat(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("name", ("hat", "hat_blocks", "hat_bpe"))
def test_shipped_models(name):
    assert len((toy := shipped(name)).losses) >= 200 and np.mean(toy.losses[-20:]) < np.mean(toy.losses[:20]) and "train_toy" in toy.made_by["made"]
    net = toy.scope if name == "hat_bpe" else toy.model
    assert bits_per_byte(net, ["The white whale swam round the ship, and the captain looked at the sea."]) < 3
    assert 0 <= word_accuracy(net, TEXTS) <= 1
