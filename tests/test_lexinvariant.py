"Models that know no symbol in advance: exact identities, four architectures, the exact mixture, bad input."
import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import tokenscope
from architectures import tiny
from tokenscope.text.names import ScopeError
from tokenscope.learn.shipped import shipped
from tokenscope.learn.small_models import load_header
from tokenscope.tokenizers.lexinvariant import (LETTERS, LexinvariantLM, MarkovSource, bayes_lexinvariant, cipher_states, decipher, encode_letters, fit_decipher_probe,
                                                load_lexinvariant, make_lookup, markov_source, plain_letters, position_loss, random_embeddings, save_lexinvariant, shuffled_key_decipher,
                                                substitution_cipher, technique, train_lexinvariant, windows)

IDS = torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(1))
draw = lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def body(request):
    return tiny(request.param)


@pytest.mark.parametrize("shift", [0, 2])
def test_equivariance(body, shift):
    model = LexinvariantLM(body, 20, shift=shift)
    E = model.embeddings(3, draw())
    plain = model(IDS, E=E, labels=IDS)
    for seed in range(3):
        turn = torch.randperm(20, generator=draw(seed))
        moved = torch.empty_like(E)
        moved[:, turn] = E
        other = model(turn[IDS], E=moved, labels=turn[IDS])
        assert torch.allclose(other.logits[..., turn], plain.logits, atol=1e-5) and torch.allclose(other.loss, plain.loss, atol=1e-5)


def test_a_fixed_readout_would_break_it():
    model = LexinvariantLM(tiny("llama"), 20, p=0)  # the learnt table is left in
    turn = torch.randperm(20, generator=draw())
    assert not torch.allclose(model(turn[IDS]).logits[..., turn], model(IDS).logits, atol=1e-2)


def test_unseen_symbols_are_exchangeable(body):
    model = LexinvariantLM(body, 22)
    E = model.embeddings(3, draw())
    swap = torch.tensor([*range(20), 21, 20])
    assert torch.allclose(model(IDS, E=E[:, swap]).logits, model(IDS, E=E).logits[..., swap], atol=1e-5)


def test_unused_symbols_do_not_matter_to_used_ones(body):
    small, large = LexinvariantLM(body, 20), LexinvariantLM(body, 500)
    E = large.embeddings(3, draw())
    assert torch.allclose(small(IDS, E=E[:, :20]).logits, large(IDS, E=E).logits[..., :20], atol=1e-5)
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(small) == count(large)


def test_both_ends_of_p(body):
    table = nn.Parameter(torch.randn(20, 32, generator=draw(3)))
    standard = LexinvariantLM(body, 20, p=0, learned=table)
    h = standard.body(inputs_embeds=nn.functional.embedding(IDS, table)).last_hidden_state
    assert torch.equal(standard(IDS).logits, nn.functional.linear(h, table) / math.sqrt(32))
    standard(IDS, labels=IDS).loss.backward()
    assert table.grad.abs().max() > 0
    table.grad = None
    LexinvariantLM(body, 20, p=1, learned=table, shift=1)(IDS, labels=IDS).loss.backward()
    assert table.grad is None
    half = LexinvariantLM(body, 20, p=0.5, learned=table)
    kept = (half.embeddings(50, draw()) == table).all(-1).float().mean()
    assert 0.4 < kept < 0.6


def test_the_body_is_left_alone(body):
    ids = IDS + 3
    before = body(ids).logits
    model = LexinvariantLM(body, 20, shift=1)
    model(IDS)
    assert torch.equal(body(ids).logits, before)


def test_generator():
    model = LexinvariantLM(tiny("llama"), 20)
    one, same, other = (model(IDS, generator=draw(s)).logits for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    E = random_embeddings(2, 400, 256, draw())
    cosine = nn.functional.cosine_similarity(E[0], E[1], dim=-1)
    assert abs(float(cosine.mean())) < 4 / (16 * 20) and 0.05 < float(cosine.std()) < 0.075


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.integers(0, 1000), st.integers(1, 5))
def test_the_mixture(vocab, seed, length):
    source = markov_source(vocab, 1.0, seed)
    mix, every = bayes_lexinvariant(source.logprob, vocab), torch.cartesian_prod(*[torch.arange(vocab)] * length).reshape(-1, length)
    q = mix(every).sum(-1)
    assert float(q.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert all(torch.allclose(q, mix(torch.tensor(name)[every]).sum(-1), rtol=0, atol=1e-12) for name in permutations(range(vocab)))
    assert float((source.logprob(every).sum(-1) - q).max()) <= math.lgamma(vocab + 1) + 1e-9


def test_the_hand_case_and_six_symbols():
    always = MarkovSource(torch.eye(2).double(), torch.tensor([1.0, 0.0]).double())
    mix = bayes_lexinvariant(always.logprob, 2)
    assert mix(torch.tensor([[0, 0, 0], [1, 1, 1]])).sum(-1).exp().tolist() == [0.5, 0.5]
    source = markov_source()
    ids = source.sample(20, 40, seed=1)
    regret = (source.logprob(ids) - bayes_lexinvariant(source.logprob, 6)(ids)).sum(-1)
    assert regret.max() <= 6.5793 and torch.equal(ids, source.sample(20, 40, seed=1))


@settings(max_examples=30, deadline=None)
@given(st.text(), st.integers(0, 99))
def test_ciphers_come_back(text, seed):
    plain = plain_letters(text)
    cipher, key = substitution_cipher(plain, seed=seed)
    assert set(plain) <= set(LETTERS) and cipher.translate(str.maketrans(key, LETTERS)) == plain and sorted(key) == sorted(LETTERS)
    if plain:
        assert encode_letters(plain).tolist() == [LETTERS.index(c) for c in plain]


@pytest.mark.parametrize("text", ["", "1234567890" * 4, "\0", "\ud800", "שלום", "٣٤٥", "९८७"], ids=["empty", "digits", "NUL", "surrogate", "right to left", "Arabic digits", "Devanagari digits"])
def test_texts_without_letters(text):
    assert plain_letters(text) == ""
    with pytest.raises(ScopeError, match="No text to encode|outside the alphabet"):
        encode_letters(text)


def test_lookup():
    ids, labels = make_lookup(4, 24, n_sequences=20, seed=3)
    other, _ = make_lookup(4, 24, n_sequences=20, new=True, seed=3)
    pairs = lambda rows: {(a, b) for row in rows[:, :8].tolist() for a, b in zip(row[::2], row[1::2])}
    assert not pairs(ids) & pairs(other) and ids.shape == (20, 16) and (labels >= 0).sum() == 80
    for row, asked in zip(ids.tolist(), labels.tolist()):
        shown = dict(zip(row[:8:2], row[1:8:2]))
        assert len(shown) == 4 and len(set(row[:8])) == 8 and all(shown[k] == v for k, v in zip(row[8::2], asked[9::2]))
    with pytest.raises(ScopeError, match="Too many pairs"):
        make_lookup(7, 24)


def test_training_learns_and_repeats():
    source = markov_source(3, 0.2, 1)
    batch = lambda step: (source.sample(8, 24, seed=step),) * 2
    runs = [train_lexinvariant(batch, 3, p, steps=40, n_layers=1, d_model=16, n_heads=2, lr=1e-2, rise=0.0) for p in (0, 0, 1)]
    assert runs[0][1] == runs[1][1] and sum(runs[0][1][-5:]) < sum(runs[0][1][:5]) and runs[2][0].learned is None
    risen, _ = train_lexinvariant(batch, 3, steps=6, n_layers=1, d_model=16, n_heads=2, rise=0.5)
    assert risen.learned is None and risen.p == 1


def test_files(tmp_path):
    model, losses = train_lexinvariant(lambda step: (IDS, IDS), 20, 0.2, steps=3, n_layers=1, d_model=16, n_heads=2)
    save_lexinvariant(model, tmp_path / "a.safetensors", losses, made_by="test")
    again = load_lexinvariant(tmp_path / "a.safetensors")
    assert again.p == 0.2 and (header := load_header(tmp_path / "a.safetensors"))["provenance"] == {"made_by": "test"} and len(header["losses"]) == 3
    assert torch.allclose(again(IDS, E=again.learned).logits, model(IDS, E=model.learned).logits, atol=2e-2)
    for name in ("markov", "letters", "letters_standard", "letters_semi"):
        assert (Path(tokenscope.__file__).parent / f"shipped/lexinvariant_{name}.safetensors").stat().st_size < 1.5e6 and shipped(f"lexinvariant_{name}").losses
    with pytest.raises(ScopeError, match="No shipped model"):
        shipped("lexinvariant_french")
    with pytest.raises(ScopeError, match="Not such a file of weights"):
        load_lexinvariant(Path(tokenscope.__file__).parent / "shipped/thread_toy.safetensors")


def test_front_and_control():
    model, source, alphabet = shipped("lexinvariant_markov").model, markov_source(), "abcdef"
    probe = fit_decipher_probe(model, source.sample(20, 33, seed=1), layer=2)
    text = "".join(alphabet[i] for i in source.sample(1, 33, seed=2)[0])
    made, again, control = (f(model, probe, text, **technique["example"]) for f in (decipher, decipher, shuffled_key_decipher))
    assert made.equals(again) and not made.equals(control) and len(made) == 33 and made.probability.between(1 / 6, 1).all() and set(made.guess) <= set(alphabet)
    assert cipher_states(model, source.sample(2, 5), 0).shape == (2, 5, 64)


def test_the_shipped_chain_model_learnt_something_and_does_not_leak():
    source, model = markov_source(), shipped("lexinvariant_markov").model
    ids = source.sample(60, 65, seed=10**6)
    mine, best = position_loss(model, ids, 2), -bayes_lexinvariant(source.logprob, 6)(ids)[:, 1:]
    assert mine[:, 32:].mean() < 1.5 and mine.mean() > best.mean()


def test_bad_input(body):
    model = LexinvariantLM(body, 20)
    long = torch.zeros(1, 65, dtype=torch.long)
    for bad, message in ((IDS[:0], "No sequences"), (IDS + 9, "Not a symbol"), (IDS - 1, "Not a symbol"), (long, "longer than the context")):
        with pytest.raises(ScopeError, match=message):
            model(bad)
    with pytest.raises(ScopeError, match="not finite"):
        model(IDS, E=torch.full((3, 20, 32), math.nan))
    with pytest.raises(ScopeError, match="Nothing to predict"):
        position_loss(model, IDS[:, :1])
    with pytest.raises(ScopeError, match="No layer"):
        model.states(IDS, model.embeddings(3, draw()), layer=9)
    with pytest.raises(ScopeError, match="Not a lexinvariant model"):
        LexinvariantLM(body, 20, p=1.5)
    with pytest.raises(ScopeError, match="Too many relabellings"):
        bayes_lexinvariant(len, 7)
    with pytest.raises(ScopeError, match="too short"):
        windows(IDS[0], 12, 2)
