"Steps and their contexts, the sparse bottleneck on them, and the reading of any model's steps."
import math

import pytest
import torch
from torch.nn import functional as F

from architectures import tiny_reader
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.learn.small_models import small_llama, word_tokenizer
from tokenscope.learn.shipped import shipped
from tokenscope.learn.steps import OPERATORS, STYLES, arithmetic_chains, chain_pairs, read_steps, split_steps, step_batch, step_pairs, text_pairs, train_chain_lm
from tokenscope.lenses.step_sae import (FrozenStepSAE, L1Controller, ablate_code, conditional_gain, shuffled_codes, shuffled_step_sae, sparse_code, start_step_sae,
                                        step_codes, step_losses, step_sae, top_steps, weighted_vote, write_steps)

TEXT = "Ann has 3 pies.\nShe buys 4 <xmp>more: 3 + 4 = 7.\nBob eats 2: 7 - 2 = 5.\nSo 5 are left."


@pytest.fixture(scope="module")
def toy():
    "An untrained StepSAE of two code vectors."
    tokenizer = word_tokenizer(["<sep>", *STYLES, *OPERATORS, "careful", "careless", "=", *map(str, range(10))])
    return start_step_sae(Scope(small_llama(len(tokenizer), d_model=32), tokenizer), expansion=2)


@pytest.fixture(scope="module")
def pairs():
    return chain_pairs(arithmetic_chains(5, seed=3))[0]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def reader(request):
    return tiny_reader(request.param, max_position_embeddings=128)


def test_steps_and_contexts():
    assert split_steps("a\n\nb\nc") == ["a", "b\nc"] and split_steps("a\nb", merge_last=False) == ["a", "b"] and split_steps(" \n") == [] and split_steps("a") == ["a"]
    assert step_pairs("q", ["a", "b"]) == [("q", "a"), ("q\na", "b")]
    assert text_pairs(TEXT) == [(TEXT.split("\n")[0], TEXT.split("\n")[1]), ("\n".join(TEXT.split("\n")[:2]), "\n".join(TEXT.split("\n")[2:]))]


def test_chains_are_what_they_say():
    chains = arithmetic_chains(300, seed=1)
    assert chains == arithmetic_chains(300, seed=1) != arithmetic_chains(300, seed=2)
    labels = chain_pairs(chains)[1]
    careless = [x["right"] for x in labels if x["mood"] == "careless"]
    assert all(x["right"] for x in labels if x["mood"] == "careful") and abs(sum(careless) / len(careless) - 0.5) < 0.08
    for chain in chains[:40]:
        value = int(chain["problem"].split()[-1])
        for x in chain["labels"]:
            assert ((OPERATORS[x["operator"]](value, x["operand"]) - x["result"]) % 10 == 0) == x["right"]
            value = x["result"]


def test_a_batch_scores_the_step_and_its_end(toy, pairs):
    batch, eos = toy.prepare(pairs), toy.tokenizer.convert_tokens_to_ids("<eos>")
    assert batch.scored.sum(1).tolist() == [len(s.split()) + 1 for _, s in pairs]
    assert (batch.ids[torch.arange(len(batch)), batch.last] == eos).all() and batch[torch.tensor([0])].ids.shape[1] == batch.last[0] + 1
    cut = step_batch(toy.tokenizer, pairs, max_tokens=3)
    assert cut.ids.shape[1] == 3 + 1 + 3 + 1 and cut.scored.sum(1).eq(4).all()


def test_holes_never_hide_the_end(toy, pairs):
    torch.manual_seed(0)
    batch = toy.prepare(pairs)
    mask = toy.punched(batch, 1.0)
    assert mask[torch.arange(len(batch)), batch.last].all() and mask.sum() == (batch.mask & ~batch.scored).sum() + len(batch)
    assert torch.equal(toy.punched(batch, 0.0), batch.mask)


def test_codes_have_length_one():
    z = sparse_code(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)))
    l1 = z.sum(-1)
    assert torch.allclose(z.norm(dim=-1), torch.ones(50)) and (l1 >= 1 - 1e-5).all() and (l1 <= 4).all()
    assert sparse_code(torch.tensor([[-1.0, -2], [0, -1]])).sum() == 0  # dead: no NaN
    for k in (1, 4, 9):
        assert abs(sparse_code(torch.eye(16)[:k].sum(0)).sum() - math.sqrt(k)) < 1e-5
    before = torch.randn(5, 16)
    assert torch.allclose(sparse_code(7 * before), sparse_code(before))
    off = ablate_code(z, [0, 3])
    assert (off[:, [0, 3]] == 0).all() and torch.allclose(off.norm(dim=-1), torch.ones(50)) and ablate_code(torch.eye(4)[:1], 0).sum() == 0


def test_codes_and_losses_do_not_depend_on_the_batch(toy, pairs):
    z = step_codes(toy, pairs)
    losses = step_losses(toy, pairs, z)
    for i in (0, 3, 7):
        assert torch.allclose(step_codes(toy, pairs[i:i + 1])[0], z[i], atol=1e-5)
        assert torch.allclose(step_losses(toy, pairs[i:i + 1], z[i:i + 1])[0], losses[i], atol=1e-4)


def test_alignment_and_causality(toy, pairs):
    batch = toy.prepare(pairs[2:3])
    z = step_codes(toy, pairs[2:3])
    logits = toy.logits(batch, z)
    assert logits.shape[1] == batch.ids.shape[1]  # one row for each token, two code vectors before them
    t = int(batch.last[0]) - 2
    other = batch[torch.tensor([0])]
    other.ids[0, t] = (other.ids[0, t] + 1) % 20 + 4
    moved = (toy.logits(other, z) - logits).abs().amax(-1)[0]
    assert moved[:t + 1].max() < 1e-5 < moved[t + 1]
    assert torch.allclose(toy.losses(batch, z)[0, -1], -logits[0, -1].log_softmax(-1)[batch.ids[0, -1]], atol=1e-5)


def test_controller():
    control = L1Controller(target=2.0)
    for _ in range(300):
        control.see(2.5)
    assert math.isclose(control.weight, 1e-4 * 1.01**3)
    for _ in range(100):
        control.see(2.0)  # exactly on target it decays
    assert math.isclose(control.weight, 1e-4 * 1.01**3 * 0.99)
    for _ in range(100_000):
        control.see(9.0)
    assert control.weight == 0.1


def test_training_is_repeatable_and_leaves_the_random_state(pairs):
    lm, _ = train_chain_lm(3, n_chains=20)
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        before, sae = torch.get_rng_state(), start_step_sae(lm)
        made.append(sae.fit(pairs, steps=3, batch_size=8))
        assert torch.equal(torch.get_rng_state(), before) and "forward" not in vars(sae)
    assert made[0].equals(made[1]) and list(made[0].columns) == ["rec", "l1", "weight"]


def test_the_shipped_one_writes_steps():
    sae, (pairs, labels) = shipped("step_sae").model, chain_pairs(arithmetic_chains(10, seed=77))
    z = step_codes(sae, pairs)
    written = write_steps(sae, [c for c, _ in pairs], z)
    assert written == write_steps(sae, [c for c, _ in pairs], z)
    assert written[3:4] == write_steps(sae, [pairs[3][0]], z[3:4])  # padding does not matter
    gain = conditional_gain(sae, pairs).mean()
    assert gain.own < gain.none < gain.shuffled
    best = top_steps(sae, pairs, int(z.mean(0).argmax()), 3)
    assert len(best) == 3 and best.value.is_monotonic_decreasing


def test_reading_on_four_architectures(reader):
    before = [p.clone() for p in reader.model.parameters()]
    reader.read("a", layers=0)
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in reader.model.modules())
    there, tables = hooks(), {}
    for make, side in ((step_sae, "left"), (step_sae, "right"), (shuffled_step_sae, "right")):
        reader.tokenizer.padding_side = side
        reading = make(reader, TEXT, merge_last=False, steps=4, batch_size=8)
        scores = reading.scores()
        assert scores.values.shape == (2, len(scores.tokens)) and "".join(scores.tokens) == "\n".join(TEXT.split("\n")[1:]) + "\n" and "<xmp" not in reading._repr_html_()
        tables[make, side] = reading.to_df()
    assert tables[step_sae, "left"].equals(tables[step_sae, "right"])
    assert not tables[step_sae, "right"].iloc[:, 2].equals(tables[shuffled_step_sae, "right"].iloc[:, 2])
    assert hooks() == there and all(torch.equal(a, b) for a, b in zip(before, reader.model.parameters()))


def test_a_frozen_reading_is_the_models_own(reader):
    pairs, words = text_pairs(TEXT, merge_last=False), torch.tensor([5, 17, 40])
    read = read_steps(reader, pairs, words, layer=1)
    nl = reader.tokenizer("\n")["input_ids"]
    for i, (context, step) in enumerate(pairs):
        c, s = (reader.tokenizer(t)["input_ids"] for t in (context, step))
        ids = c + nl + s + nl
        logp = reader.logits([ids])[0].log_softmax(-1)
        own = logp[len(c) + len(nl) - 1:-1].gather(1, torch.tensor(s + nl)[:, None])[:, 0]
        assert torch.allclose(read.own[i][read.scored[i]], own, atol=1e-4)
        assert torch.allclose(read.state[i], reader.read([ids], layers=1, positions=-1)["resid_post"][0, 0, 0], atol=1e-4)
    assert read.base[read.scored].logsumexp(-1).abs().max() < 1e-4
    sae = FrozenStepSAE(reader, [s for _, s in pairs])
    torch.nn.init.zeros_(sae.say.weight), torch.nn.init.zeros_(sae.say.bias)
    data = sae.prepare(pairs)
    assert torch.allclose(sae.losses(data, torch.zeros(3, 512)), -data.own * data.scored, atol=1e-4)  # no correction: the model's own loss


def test_vote():
    assert weighted_vote(["7", "5", "5"], [[0.9, 0.9], [0.1], [0.1, 0.1]])[0] == "7" and weighted_vote(["7", "5", "5"], [[1.0]] * 3)[0] == "5"
    assert math.isclose(weighted_vote(["1"], [[0.25, 1.0]], tau=0.5)[1]["1"], 0.75)


def test_shuffled_codes_move_every_code():
    z = torch.arange(7.0)[:, None].expand(7, 3)
    for seed in range(5):
        mixed = shuffled_codes(z, seed)
        assert (mixed != z).all() and sorted(mixed[:, 0].tolist()) == z[:, 0].tolist()


@pytest.mark.parametrize("wrong, message", [
    (lambda s, t: step_sae(s, ""), "Not a problem with steps"), (lambda s, t: step_sae(s, "one line"), "Not a problem with steps"), (lambda s, t: step_sae(s, [TEXT, TEXT]), "Not a problem with steps"),
    (lambda s, t: step_sae(s, "q\nHi " + "a b " * 200, steps=2), "too long"), (lambda s, t: shuffled_step_sae(s, "q\na", steps=2), "Nothing to shuffle"),
    (lambda s, t: step_batch(t.tokenizer, []), "No steps to encode"), (lambda s, t: step_batch(t.tokenizer, [("so", " ")]), "A step without tokens"),
    (lambda s, t: FrozenStepSAE(Scope(s.model), ["a"]), "no tokenizer"), (lambda s, t: FrozenStepSAE(s, ["a"], layer=9), "9"), (lambda s, t: FrozenStepSAE(s, ["a"], l1_target=0.0), "A step code needs"),
    (lambda s, t: weighted_vote([], []), "A vote needs"), (lambda s, t: weighted_vote(["a"], [[1.5]]), "A vote needs"), (lambda s, t: weighted_vote(["a"], [[float("nan")]]), "A vote needs")])
def test_bad_input(reader, toy, wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong(reader, toy)
