"Scope, Trace and Edit on bad input: each a clear error or the right answer."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import VOCAB, tiny
from tokenscope.text.batch import choose_columns, make_batch, real_index
from tokenscope.core.edit import Edit
from tokenscope.core.running import position_mask
from tokenscope.text.names import BadArgument, ScopeError
from tokenscope.core.scope import Scope, load


REFUSED = (ScopeError, TypeError)  # with annotations checked, a wrong type is stopped before our own message


@pytest.fixture(scope="module")
def scope():
    return Scope(tiny("llama"))


masks = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.booleans()), min_size=1, max_size=4)


def padded(rows):
    "An attention mask with rows of some lengths, padded on one side for all."
    width, left = max(p + n for p, n, _ in rows), rows[0][2]
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (_, n, _) in enumerate(rows):
        mask[i, width - n:] = 1 if left else mask[i, width - n:]
        mask[i, :n] = mask[i, :n] if left else 1
    return mask


@given(masks)
def test_real_positions_count_up_from_zero_whatever_the_padding(rows):
    mask = padded(rows)
    index = real_index(mask)
    for i, m in zip(index, mask.bool()):
        assert i[m].tolist() == list(range(int(m.sum()))) and (i[~m] == -1).all()


@given(masks, st.integers(-6, 5))
def test_a_chosen_position_is_a_real_token_or_an_error(rows, position):
    mask = padded(rows)
    lengths = mask.sum(1)
    if any(not -n <= position < n for n in lengths.tolist()):
        with pytest.raises(ScopeError, match="No such position"):
            choose_columns(position, mask)
        return
    columns, real = choose_columns(position, mask)
    found = real_index(mask).gather(1, columns)[:, 0]
    assert real.all() and found.tolist() == [position % n for n in lengths.tolist()]


@given(masks, st.lists(st.integers(-6, 8), max_size=3), st.integers(0, 3))
def test_position_masks_never_touch_padding(rows, positions, made):
    index = real_index(padded(rows))
    n_prompt = (index.max(1, keepdim=True).values + 1 - made).clamp(min=1)
    for p in ("all", "not first", "first", "prompt", "generated", "last", slice(1, None), slice(-2, None), positions):
        chosen = position_mask(p, index, n_prompt)
        assert chosen.shape == index.shape and not chosen[index < 0].any()
    prompt, generated = position_mask("prompt", index, n_prompt), position_mask("generated", index, n_prompt)
    assert torch.equal(prompt | generated, index >= 0) and not (prompt & generated).any()


@pytest.mark.parametrize("given, message", [
    ([], "batch is empty"), ([[]], "no tokens"), ([[VOCAB]], "outside the model's vocabulary"), ([[-1]], "outside"), ([list(range(3)) * 30], "too long"),
    ("text", "No tokenizer"), (3.5, "Not a text"), (torch.zeros(1, 3), "Not a text: a tensor of torch.float32"), ([[1], None], "Not a text"), ({"attention_mask": torch.ones(1, 1)}, "No input_ids"),
    ({"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 3)}, "Wrong shape")])
def test_what_cannot_be_read(scope, given, message):
    with pytest.raises(ScopeError, match=message):
        scope.read(given)


@pytest.mark.parametrize("how, message", [
    (dict(sites="resid"), "Unknown site"), (dict(sites=[]), "No sites"), (dict(sites=5), "Unknown site|Type-check"), (dict(positions=1.5), "Not a position number|Type-check"), (dict(layers=3), "No such layer"), (dict(layers=[]), "No layers"), (dict(layers=["all"]), "Not a layer|Type-check"),
    (dict(positions=5), "No such position"), (dict(positions="second"), "Unknown positions"), (dict(positions=None), "No positions|Type-check"), (dict(positions=-1, grad=True), "does not go with")])
def test_how_it_cannot_be_read(scope, how, message):
    with pytest.raises(REFUSED, match=message):
        scope.read([5, 6, 7], **how)


@pytest.mark.parametrize("edit, message", [
    (lambda: Edit("resid_post"), "exactly one"), (lambda: Edit("resid_post", add=1.0, scale=2.0), "exactly one"), (lambda: Edit("resid_post", fn=3), "must be a function|Type-check"),
    (lambda: Edit("resid_post", add="x"), "must be a number or a tensor|Type-check"), (lambda: Edit("resid_post", add=1.0, positions=1.5), "Not a position number|Type-check"),
    (lambda: Edit("resid_post", add=float("nan")), "NaN or infinity"), (lambda: Edit("resid_post", add=1.0, heads=0), "no head axis"),
    (lambda: Edit("z", add=1.0, keys=0), "keys= belongs"), (lambda: Edit("z", add=1.0, when="never"), "Unknown when"), (lambda: Edit("z", add=1.0, positions="second"), "Unknown positions"), (lambda: Edit("z", add=1.0, positions=None), "No positions|Type-check"),
    (lambda: Edit("attn", add=1.0), "Unknown site"), (lambda: Edit("resid_post", layers=9, add=1.0), "No such layer"), (lambda: Edit("z", heads=4, add=1.0), "No such head"),
    (lambda: Edit("resid_post", add=torch.ones(7)), "does not fit"), (lambda: Edit("resid_post", fn=lambda x: x[:, :1]), "changed the shape"),
    (lambda: Edit("resid_post", fn=lambda x: None), "changed the shape"), (lambda: "no edit", "Not an edit|Type-check")])
def test_what_cannot_be_edited(scope, edit, message):
    with pytest.raises(REFUSED, match=message), scope.edit(edit()):
        scope.model(torch.tensor([[5, 6, 7]]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in scope.model.modules())


def test_one_token_reads_and_generates(scope):
    trace = scope.read([5], ["resid_post", "pattern", "logits"])
    assert trace["pattern"].shape == (1, 3, 4, 1, 1) and trace["logits"].shape == (1, 1, VOCAB)
    assert scope.surprisal([5]).values.shape == (1,) and torch.tensor(scope.surprisal([5]).values).isnan().all()
    assert len(scope.generate([5], max_new_tokens=2, eos_token_id=None)) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reads_edits_and_generates(dtype):
    scope = Scope(tiny("llama").to(dtype))
    ids = torch.tensor([[5, 6, 7, 8]])
    trace = scope.read(ids, ["resid_post", "pattern", "logits"])
    assert trace["resid_post"].dtype == dtype and trace["logits"].isfinite().all()
    direction = torch.ones(32, dtype=torch.float64)  # a direction of another dtype is cast to the model's
    with scope.edit(Edit("resid_post", layers=1, add=direction), Edit("attn_scores", add=0.7, keys=0)):
        assert scope.read(ids, "logits")["logits"].isfinite().all() and len(scope.generate(ids[0].tolist(), max_new_tokens=3, eos_token_id=None)) == 3


def test_a_reader_inside_an_edit_sees_the_edit(scope):
    plain = scope.read([5, 6, 7], "resid_post", layers=1)["resid_post"]
    with scope.edit(Edit("resid_post", layers=1, add=2.0)):
        edited = scope.read([5, 6, 7], "resid_post", layers=1)["resid_post"]
        with scope.edit(Edit("resid_post", layers=1, scale=3.0)):
            nested = scope.read([5, 6, 7], "resid_post", layers=1)["resid_post"]
    torch.testing.assert_close(edited[:, :, 1:], plain[:, :, 1:] + 2)
    torch.testing.assert_close(nested[:, :, 1:], 3 * (plain[:, :, 1:] + 2))
    assert torch.equal(nested[:, :, 0], plain[:, :, 0])  # the first token is left out unless asked for


def test_gradients_at_a_site_match_a_finite_difference(scope):
    double = Scope(tiny("llama").double())
    trace = double.read([5, 6, 7], ["resid_mid", "logits"], layers=1, grad=True)
    slope, = torch.autograd.grad(trace["logits"][0, -1, 9], trace.at("resid_mid", 1))
    step = torch.zeros(1, 3, 32, dtype=torch.double)
    step[0, 1, 4] = 5e-3  # the family's norm works in float32, so a smaller step drowns in rounding
    sides = []
    for sign in (1, -1):
        with double.edit(Edit("resid_mid", layers=1, add=sign * step)):
            sides.append(double.read([5, 6, 7], "logits")["logits"][0, -1, 9])
    torch.testing.assert_close((sides[0] - sides[1]) / 1e-2, slope[0, 1, 4], rtol=3e-3, atol=1e-5)


def test_only_what_is_asked_for_is_computed(scope):
    scope.read([5, 6, 7], "resid_mid", layers=1)  # the structure is watched once, at first need
    ran = []
    hooks = [layer.register_forward_hook(lambda *a, i=i: ran.append(i)) for i, layer in enumerate(scope.structure.layers)]
    hooks.append(scope.model.lm_head.register_forward_hook(lambda m, a, out: ran.append(tuple(out.shape))))
    scope.read([5, 6, 7], "resid_mid", layers=1)
    assert ran == [0]
    ran.clear()
    scope.read([5, 6, 7], "logits", positions=-1)
    assert ran == [0, 1, 2, (1, 1, VOCAB)]
    for h in hooks:
        h.remove()


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=8), min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_any_batch_equals_its_rows(rows, side):
    scope = Scope(tiny("qwen3"))
    batch = make_batch(rows, padding_side=side)
    together = scope.logprobs(batch)
    for row, values, mask in zip(rows, together, batch.attention_mask.bool()):
        torch.testing.assert_close(values[mask], scope.logprobs([row])[0], rtol=1e-3, atol=1e-4, equal_nan=True)


def test_a_name_that_is_no_model():
    for name in ("no/such-model-anywhere", "missing.gguf"):
        with pytest.raises(ScopeError, match="No such"):
            load(name)
    with pytest.raises(ScopeError, match="Not a Hugging Face model"):
        Scope(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("given, message", [(dict(device="gpu"), "device must be a word of torch"), (dict(dtype="float3"), "did you mean 'float32'"), (dict(name=5), "Not a Hugging Face model|Type-check")])
def test_how_a_model_cannot_be_loaded(given, message):
    with pytest.raises(REFUSED, match=message):
        load(**given)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ScopeError, match="the folder has none"):
        load(tmp_path)


@pytest.mark.parametrize("count", [0, -1, 1.5, "x"])
def test_a_number_of_new_tokens_is_whole_and_above_zero(scope, count):
    with pytest.raises(REFUSED, match="max_new_tokens must be a whole number|Type-check"):
        scope.generate([5, 6, 7], max_new_tokens=count)


@pytest.mark.model
def test_the_default_model_from_files(tmp_path):
    scope = load()
    again = load(scope.model.name_or_path)
    ids = scope.encode("The capital of France is").input_ids
    assert torch.equal(scope.logits(ids), again.logits(ids))
    assert scope.generate("The capital of France is", max_new_tokens=2).startswith(" Paris")
    assert [str(t) for t in scope.read("Hi ‍🔥", "embed").tokens[0]]


@pytest.mark.parametrize("trainable", [True, False])
def test_weights_that_require_gradients_read_the_same(trainable):
    own = Scope(tiny("llama", trainable=trainable))
    ids, frozen = [5, 6, 7, 8], Scope(tiny("llama", trainable=False))
    for name in ("logits", "logprobs"):
        assert not getattr(own, name)(ids).requires_grad, name
    for name in ("surprisal", "entropy", "next_tokens", "attention_received"):
        values = getattr(own, name)(ids).values
        torch.testing.assert_close(torch.tensor(values), torch.tensor(getattr(frozen, name)(ids).values), rtol=0, atol=0, equal_nan=True)
    states = own.read(ids, "resid_post")["resid_post"]
    assert not states.requires_grad and not own.unembed(states).requires_grad
    assert own.logit_lens(ids).to_df().equals(frozen.logit_lens(ids).to_df())
    inside = own.read(ids, ["resid_post", "logits"], layers=1, grad=True)
    assert inside["logits"].requires_grad and own.unembed(inside.at("resid_post", 1)).requires_grad


def test_positions_mean_the_same_in_a_read_and_in_an_edit(scope):
    rows = [[5, 6, 7, 8], [9, 10]]
    plain = scope.read(rows, "resid_post", layers=1)
    for word in ("all", "not first", "first", "last", slice(1, None), [0, -1]):
        with scope.edit(Edit("resid_post", layers=1, add=5.0, positions=word)):
            moved = scope.read(rows, "resid_post", layers=1)["resid_post"] - plain["resid_post"]
        for row, lengths in enumerate((4, 2)):
            read = [str(t) for t in scope.read(rows[row], "embed", positions=word).tokens[0]]
            edited = (moved[row, 0, :lengths].mean(-1) > 4).tolist()
            assert [str(i) for i, on in zip(rows[row], edited) if on] == read, word
    assert Edit("resid_post", add=1.0).positions == "not first" and Edit("logits", add=1.0).positions == Edit("pattern", add=1.0).positions == "all"
    assert Edit("logits", add=1.0, positions="not first").positions == "not first"


def test_half_precision_does_not_overflow_in_silence():
    scope = Scope(tiny("llama").half())
    for change in (dict(add=1e5), dict(set=7e4), dict(scale=1e6), dict(fn=lambda x: x + 6e4 + 6e4), dict(fn=lambda x: x.float() * 1e9), dict(add=torch.full((32,), -1e5))):
        for site in ("resid_post", "z", "mlp_out"):
            with pytest.raises(BadArgument, match="Too large for float16|does not fit"), scope.edit(Edit(site, layers=1, **change)):
                scope.logits([5, 6, 7])
    with pytest.raises(BadArgument, match="Too large for float16"), scope.edit(Edit("attn_scores", add=1e5)):
        scope.logits([5, 6, 7])
    with scope.edit(Edit("attn_scores", add=-1e9, keys=1, positions=2), Edit("logits", add=-1e9, positions="last")):
        assert not scope.logits([5, 6, 7], positions=[0, 1]).isnan().any()


def test_what_is_not_edited_may_be_as_large_as_it_likes():
    scope = Scope(tiny("llama").half())
    with scope.edit(Edit("resid_post", layers=0, set=6e4, positions="first"), Edit("resid_post", layers=0, scale=2.0)):
        assert scope.read([5, 6, 7], "resid_post", layers=0).at("resid_post", 0)[0, 0, 0] == 6e4
