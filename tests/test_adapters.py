"Rows of the head, low-rank adapters, ranks and read-out directions, probes by layer."
import pytest
import torch

from architectures import VOCAB, tiny
from tokenscope.change.adapters import RowEdit, fit_rows, lora_adapter
from tokenscope.text.names import ScopeError
from tokenscope.measure.probes import layer_probes
from tokenscope.core.readouts import lens_rank, readout_rows
from tokenscope.core.scope import Scope
from tokenscope.core.states import last_states

ROWS = torch.randint(3, VOCAB - 1, (12, 7), generator=torch.Generator().manual_seed(2)).tolist()
GOAL = torch.tensor([5, 9] * 6)


@pytest.fixture(params=["llama", "gpt2", "gemma2", "granite", "opt"])
def own(request):
    return Scope(tiny(request.param))


def test_new_rows_change_their_logits_and_no_others(own):
    plain, edit = own.logits(ROWS), RowEdit(own, [5, 9])
    with edit.applied():
        assert (own.logits(ROWS) - plain).abs().max() < 1e-4  # the old rows say the old things
    edit.rows = edit.rows + 1
    rest = torch.ones(VOCAB, dtype=torch.bool).index_fill(0, edit.ids, False)
    with edit.applied():
        assert torch.equal(own.logits(ROWS)[..., rest], plain[..., rest]) and (own.logits(ROWS) - plain)[..., edit.ids].abs().min() >= 0
        assert own.generate(ROWS[0], max_new_tokens=3, eos_token_id=None) == own.generate(ROWS[0], max_new_tokens=3, eos_token_id=None, use_cache=False)
        with pytest.raises(RuntimeError, match="on purpose"), edit.applied():
            raise RuntimeError("on purpose")
    assert torch.equal(own.logits(ROWS), plain)


@pytest.mark.parametrize("loss", ["hinge", "cross-entropy"])
def test_fitted_rows_say_the_target(loss):
    own = Scope(tiny("llama"))
    states, edit = last_states(own, ROWS, layers=-1)[:, 0], RowEdit(own, [5, 9])
    losses = fit_rows(edit, states, torch.tensor([0, 1] * 6), loss=loss)
    with edit.applied():
        logits = own.logits(ROWS, positions=-1)[:, 0]
    right = logits.gather(1, GOAL[:, None])[:, 0]
    assert losses[-1] < losses[0] and (right >= logits.index_fill(1, edit.ids, -torch.inf).amax(1)).all()
    assert loss == "hinge" or torch.equal(logits.argmax(1), GOAL)


def test_adapter_learns_comes_off_and_starts_at_nothing():
    own = Scope(tiny("llama"))
    plain, names, weights = own.logits(ROWS, positions=-1), [n for n, _ in own.model.named_parameters()], [p.clone() for p in own.model.parameters()]
    with lora_adapter(own, ROWS, GOAL, steps=0):
        assert torch.equal(own.logits(ROWS, positions=-1), plain)
    with lora_adapter(own, ROWS, GOAL, ("q_proj", "v_proj", "o_proj"), steps=150, lr=3e-2) as losses:
        said = own.logits(ROWS, positions=-1)[:, 0].argmax(1)
    with lora_adapter(own, ROWS, GOAL, ("q_proj", "v_proj", "o_proj"), steps=150, lr=3e-2) as again:
        assert torch.equal(own.logits(ROWS, positions=-1)[:, 0].argmax(1), said)
    assert losses == again and losses[-1] < losses[0] and (said == GOAL).float().mean() > 0.7
    with pytest.raises(RuntimeError, match="on purpose"), lora_adapter(own, ROWS, GOAL, steps=1):
        raise RuntimeError("on purpose")
    assert torch.equal(own.logits(ROWS, positions=-1), plain) and [n for n, _ in own.model.named_parameters()] == names
    assert all(torch.equal(a, b) for a, b in zip(weights, own.model.parameters()))
    assert all(p.requires_grad for p in own.model.parameters())  # as before


def test_ranks_and_directions(own):
    states = last_states(own, ROWS)
    logits = own.logits(ROWS, positions=-1)[:, 0]
    best, worst = lens_rank(own, states, logits.argmax(1)), lens_rank(own, states, logits.argmin(1))
    assert best.shape == (12, 3) and (best[:, -1] == 1).all() and (worst[:, -1] == VOCAB).all()
    gradient = readout_rows(own, torch.tensor([5]), states[:1, -1])[0]
    h, step = states[0, -1].double(), 1e-3 * torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(0)).double()
    wide = Scope(own.model.double())
    moved = (wide.unembed((h + step)[None]) - wide.unembed((h - step)[None]))[0, 5] / 2
    torch.testing.assert_close(gradient.double() @ step, moved, rtol=1e-2, atol=1e-5)


def test_probes_by_layer_and_their_control():
    number, draw = torch.arange(150) % 7, torch.Generator().manual_seed(3)
    states = torch.stack([torch.randn(150, 20, generator=draw), torch.randn(150, 20, generator=draw)], 1)
    states[:, 1, 4] += 3 * number
    fitted, control = (layer_probes(states, number.tolist(), [3, 8], shuffled=s) for s in (False, True))
    assert fitted.r2[0] < 0.2 and fitted.r2[1] > 0.9 and max(control.r2) < 0.2 and fitted[8].direction.argmax() == 4
    apart = layer_probes(states, number.tolist(), [3, 8], groups=number.tolist(), seed=1)
    assert apart[8].weights.shape == (20,) and apart.r2 != fitted.r2


@pytest.mark.parametrize("wrong, message", [
    (lambda s: fit_rows(RowEdit(s, [5]), torch.full((2, 32), torch.nan), torch.zeros(2).long()), "Rows need one target"),
    (lambda s: fit_rows(RowEdit(s, [5]), torch.zeros(2, 32), torch.tensor([0, 1])), "Rows need targets"), (lambda s: RowEdit(s, [VOCAB]), "No such row"), (lambda s: RowEdit(s, []), "No such row"),
    (lambda s: lora_adapter(s, [], GOAL[:0]).__enter__(), "An adapter needs"), (lambda s: lora_adapter(s, ROWS, GOAL[:3]).__enter__(), "An adapter needs"), (lambda s: lora_adapter(s, ROWS, GOAL, ["qkv"]).__enter__(), "No linear layer is called"),
    (lambda s: layer_probes(torch.ones(12, 1, 4), [1] * 12, [0]), "are the same"), (lambda s: layer_probes(torch.ones(12, 1, 4), range(5), [0]), "Probes need a number"),
    (lambda s: layer_probes(torch.ones(12, 1, 4), range(12), [0], groups=[1]), "Probes need a number"), (lambda s: layer_probes(torch.ones(12, 1, 4), range(12), [0])[1], "No probe for layer 1"),
    (lambda s: RowEdit(Scope(s.model.base_model), [5]), "No head to edit"),
    (lambda s: RowEdit(Scope(torch.ao.quantization.quantize_dynamic(s.model, {torch.nn.Linear})), [5]), "No rows to read")])
def test_bad_input(wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong(Scope(tiny("llama")))
