"Counting read-out: prompts, digits, alignment, repairs."
import numpy as np
import pytest
import torch

from architectures import tiny, tiny_reader
from corpus_fixtures import small  # noqa: F401
from tokenscope.change.adapters import RowEdit, lora_adapter
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.learn.small_models import word_tokenizer
from tokenscope.core.states import last_states
from tokenscope.lenses.counting_readout import (ANIMALS, THINGS, DigitRowEdit, count_probes, count_prompts, count_scores, counting_readout, digit_tokens, probe_bump, probe_steering, question_rows,
                                                readout_alignment, running_counts, shuffled_count_readout)

TEXT = "cat road cat <b>. How many cat are there? Answer: "


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def other(request):
    return tiny_reader(request.param)


@pytest.mark.parametrize("pool, length", [("other", None), ("same", None), ("same", 9), ("other", 12)])
def test_the_counts_are_true_and_balanced(pool, length):
    made = count_prompts(90, pool=pool, length=length, seed=3)
    for text, count, word in zip(made.texts, made.counts, made.words):
        bag = text.split(".")[0].split()
        assert bag.count(word) == count and f"How many {word} are there?" in text
        assert len(bag) == length if length else count <= len(bag) <= count + 4
        assert all(w in (THINGS if pool == "other" else ANIMALS) for w in bag if w != word)
    assert np.bincount(made.counts).tolist() == [0] + [10] * 9
    assert made == count_prompts(90, pool=pool, length=length, seed=3) != count_prompts(90, pool=pool, length=length, seed=4)


def test_the_space_is_found_where_the_tokenizer_writes_one(small):
    ids, lead = digit_tokens(small)
    rows = question_rows(small, [TEXT.rstrip()])
    assert small.tokenizer.convert_ids_to_tokens(ids.tolist()) == list("123456789")
    assert rows[0] == small.tokenizer(TEXT)["input_ids"] and question_rows(small, [TEXT.rstrip()], lead=False)[0] + lead == rows[0]


def test_a_tokenizer_that_needs_no_space():
    tokenizer = word_tokenizer(["Answer", ":", *"123456789", *ANIMALS])
    own = Scope(tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    ids, lead = digit_tokens(own)
    assert lead == [] and tokenizer.convert_ids_to_tokens(ids.tolist()) == list("123456789")
    lacking = word_tokenizer(["Answer", ":", "1", "2"])
    with pytest.raises(ScopeError, match="Digits are not single tokens"):
        digit_tokens(Scope(tiny("llama", vocab_size=len(lacking)), lacking))


def test_running_counts(small):
    prompts = count_prompts(20, seed=6)
    for row, text, c, word in zip(running_counts(small, prompts), prompts.texts, prompts.counts, prompts.words):
        assert row[0] in (0, int(text.startswith(word))) and row[-1] == c and all(b - a in (0, 1) for a, b in zip(row, row[1:]))
    last = count_probes(small, prompts, layers=1, positions=slice(-1, None))
    assert last[1].weights.shape == (32,) and not torch.equal(last[1].weights, count_probes(small, prompts, layers=1)[1].weights)


def test_reading_and_control(small):
    probes = count_probes(small, n=36, layers=[0, 2])
    made = counting_readout(small, TEXT, probes=probes)
    assert made.layers == [0, 2] and made.values.shape == (2, len(made.tokens)) and "<b>" not in made._repr_html_()
    states = small.read(TEXT, "resid_post", layers=2)["resid_post"][0, 0]
    np.testing.assert_allclose(made.values[1], probes[2].predict(states), rtol=1e-5)
    assert set(made.says) <= set(range(1, 10)) and len(made.to_df()) == made.values.numel()
    assert not torch.equal(shuffled_count_readout(small, TEXT, layers=[0, 2], n=36).values, made.values)


def test_the_same_alone_in_a_batch_and_with_either_padding(small):
    rows = question_rows(small, count_prompts(9).texts)
    whole = last_states(small, rows)
    for padding in ("left", "right"):
        small.tokenizer.padding_side = padding
        torch.testing.assert_close(torch.cat([last_states(small, [r]) for r in rows]), whole, rtol=1e-4, atol=1e-5)
    prompts = count_prompts(9)
    assert count_scores(small, prompts, batch_tokens=1) == count_scores(small, prompts, batch_tokens=4000)


def test_alignment_has_its_band(small):
    rows = small.model.get_output_embeddings().weight[digit_tokens(small).ids]
    table = readout_alignment(small, {"row of 4": rows[3], "random": torch.randn(32, generator=torch.Generator().manual_seed(9)), "nothing": torch.zeros(32)})
    assert table.loc["row of 4", "max |cos|"] == pytest.approx(1, abs=1e-5) and table.loc["nothing", "mean |cos|"] == 0
    draws = readout_alignment(small, {i: torch.randn(32, generator=torch.Generator().manual_seed(100 + i)) for i in range(200)})
    inside = (draws["mean |cos|"] >= draws["random low"]) & (draws["mean |cos|"] <= draws["random high"])
    assert 0.88 < inside.mean() < 0.995 and (draws.slope.abs() <= draws["random |slope|"]).mean() > 0.88
    with pytest.raises(ScopeError, match="The direction does not fit"):
        readout_alignment(small, {"short": torch.ones(5)})


def test_repairs_come_off_and_leave_the_rest_alone(other):
    few = count_prompts(18, seed=2)
    rows, ids = question_rows(other, few.texts), digit_tokens(other).ids
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in other.model.modules())
    plain, weights, before = other.logits(rows, positions=-1), [p.clone() for p in other.model.parameters()], hooks()
    rest = torch.ones(other.vocab_size, dtype=torch.bool).index_fill(0, ids, False)
    edit = DigitRowEdit(other).fit(few, loss="cross-entropy", steps=80)
    with edit.applied():
        changed, all_of = other.logits(rows, positions=-1), other.model(torch.tensor([rows[0]])).logits[0, -1]
        fitted = count_scores(other, few)["among digits"]
    assert torch.equal(changed[..., rest], plain[..., rest]) and not torch.equal(changed, plain)
    torch.testing.assert_close(all_of, changed[0, 0], rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match="on purpose"), edit.applied():
        raise RuntimeError("on purpose")
    with lora_adapter(other, rows, ids[torch.tensor(few.counts) - 1], ["o_proj" if hasattr(other.structure.attentions[0], "o_proj") else "c_attn"], r=2, alpha=4, steps=3, lr=1e-2) as losses:
        adapted = other.logits(rows, positions=-1)
    assert len(losses) == 3 and not torch.equal(adapted, plain) and torch.equal(other.logits(rows, positions=-1), plain)
    assert hooks() == before and all(torch.equal(a, b) for a, b in zip(weights, other.model.parameters()))
    assert fitted > count_scores(other, few)["among digits"]


def test_steering_is_the_formula_and_lasts_one_token(other):
    few = count_prompts(18, seed=2)
    rows, ids, probes = question_rows(other, few.texts), digit_tokens(other).ids, count_probes(other, n=36, layers=1, positions=slice(-1, None))
    estimate = torch.from_numpy(probes[1].predict(last_states(other, rows, layers=1)[:, 0]))
    plain = other.logits(rows, positions=-1)[:, 0]
    with other.edit(*probe_steering(other, probes[1], layer=1, alpha=20)):
        made = other.logits(rows, positions=-1)[:, 0]
        alone = torch.cat([other.logits(r, positions=-1)[:, 0] for r in rows[:4]])
    torch.testing.assert_close(made, plain.index_add(1, ids, probe_bump(estimate, alpha=20)), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(alone, made[:4], rtol=1e-3, atol=2e-3)
    with other.edit(*probe_steering(other, probes[1], layer=1, hard=True)):
        said = [r[0] for r in other.generate(rows, max_new_tokens=2, return_ids=True, eos_token_id=None)[1]]
    assert said == ids[estimate.round().clamp(1, 9).long() - 1].tolist() and torch.equal(other.logits(rows, positions=-1)[:, 0], plain)


@pytest.mark.parametrize("wrong, message", [
    (lambda s: count_prompts(9, pool="any"), "No pool of words"),
    (lambda s: count_prompts(9, hi=12), "Counts do not fit"), (lambda s: count_prompts(0), "Counts do not fit"), (lambda s: count_prompts(9, length=5), "Counts do not fit"), (lambda s: count_prompts(9, length=0), "Counts do not fit"),
    (lambda s: count_prompts(9, pool="same", entities=["cat"]), "Counts do not fit"), (lambda s: count_prompts(9, entities=[]), "Counts do not fit"), (lambda s: count_prompts(9, lo=3, hi=3), "Counts do not fit"),
    (lambda s: counting_readout(s, ""), "Nothing to read"), (lambda s: counting_readout(s, [TEXT, TEXT]), "counting_readout takes one text"), (lambda s: counting_readout(s, "cat " * 200), "too long"),
    (lambda s: counting_readout(s, TEXT, layers=9), "9"), (lambda s: counting_readout(s, TEXT, layers=1, probes=count_probes(s, n=18, layers=0)), "No probe for layer 1"),
    (lambda s: count_probes(s, n=1), "are the same|needs a matrix"), (lambda s: RowEdit(s, [10**6]), "No such row"), (lambda s: RowEdit(s, []), "No such row"), (lambda s: DigitRowEdit(s).fit(count_prompts(9), loss="square"), "No loss for the rows"),
    (lambda s: counting_readout(Scope(tiny("llama")), [3, 4, 5]), "No tokenizer"), (lambda s: count_scores(s, count_prompts(3), new_tokens=60), "Too long"),
    (lambda s: probe_steering(s, count_probes(s, n=18, layers=0)[0], sigma=0), "sigma")])
def test_bad_input(small, wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong(small)


def test_one_token_and_a_state_without_a_count(small):
    probes = count_probes(small, n=18, layers=[0, 1])
    assert counting_readout(small, "cat", probes=probes).values.shape == (2, 1)
    assert probe_bump(torch.tensor([1e30, -1e30]), hard=True).argmax(1).tolist() == [8, 0] and probe_bump(torch.tensor([1e30])).abs().max() == 0
