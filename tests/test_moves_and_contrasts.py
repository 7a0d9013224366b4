"Moves, contrasts and compositions on tiny models and on strange input."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import tiny
from tokenscope.change.composition import interaction, interference
from tokenscope.change.contrasts import Contrasts, answer_logprobs, imbalance, preference, warn_imbalance
from tokenscope.core.edit import Edit
from tokenscope.change.moves import AddKeepingNorm, ProjectOut, TurnTowards, orthonormal_basis
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.core.states import last_states

PAIRS = Contrasts([[5, 6, 7], [8, 9]], [[10], [11, 12, 13]], [[20, 21], [22]])


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mixtral"])
def scope(request):
    return Scope(tiny(request.param))


@settings(deadline=None)  # the first example loads what the others find loaded
@given(st.integers(0, 99), st.floats(0, 180))
def test_a_turned_state_has_its_length_and_its_angle(seed, angle):
    h, v = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(seed)).unbind(0)
    turned = TurnTowards(v[0], angle)(h)
    torch.testing.assert_close(turned.norm(dim=-1), h.norm(dim=-1))
    between = torch.rad2deg(torch.nn.functional.cosine_similarity(h, turned, dim=-1).clamp(-1, 1).acos())
    most = torch.rad2deg(torch.nn.functional.cosine_similarity(h, v[:1], dim=-1).acos())
    assert (between - torch.minimum(torch.tensor(angle), most)).abs().max() < 0.2


@given(st.integers(0, 99), st.integers(1, 6))
def test_projection(seed, k):
    h, d = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(seed)).unbind(0)
    q = orthonormal_basis(torch.cat([d[:k], d[:1]]))
    out = ProjectOut(q)(h)
    assert len(q) == k and (out @ d[:k].T).abs().max() < 1e-4 and (ProjectOut(q)(out) - out).abs().max() < 1e-5
    assert (out.norm(dim=-1) <= h.norm(dim=-1) + 1e-5).all()


def test_moves_keep_the_number_type_and_zero_states():
    h = torch.zeros(2, 8, dtype=torch.bfloat16)
    for move in (AddKeepingNorm(torch.ones(8)), TurnTowards(torch.ones(8), 30.0), ProjectOut(torch.eye(8)[:2])):
        assert move(h).dtype == torch.bfloat16 and (move(h) == 0).all()


def test_preference_is_that_of_a_plain_loop(scope):
    def slowly(prompt, answer):
        logp = scope.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(logp[len(prompt) + k - 1, i] for k, i in enumerate(answer))

    wanted = torch.stack([slowly(p, a) - slowly(p, b) for p, a, b in zip(PAIRS.prompts, PAIRS.right, PAIRS.wrong)])
    for batch_tokens in (1, 2048):
        torch.testing.assert_close(preference(scope, PAIRS, batch_tokens=batch_tokens), wanted, atol=1e-4, rtol=1e-4)
    mean = answer_logprobs(scope, PAIRS.prompts, PAIRS.right, mean=True)
    torch.testing.assert_close(mean * torch.tensor([1.0, 3.0]), answer_logprobs(scope, PAIRS.prompts, PAIRS.right))


def test_imbalance():
    letters = Contrasts(["a", "b", "c"], [" A", " A", " B"], [" B", " B", " A"])
    assert imbalance(letters) == {" A": (2, 1), " B": (1, 2)} and not imbalance(Contrasts(["a", "b"], [" A", " B"], [" B", " A"]))
    with pytest.warns(UserWarning, match="right 2 times and wrong 1"):
        warn_imbalance(letters)


@pytest.mark.parametrize("wrong", [([], [], []), ([[1]], [[2]], [[2]]), ([[1]], [[2]], [])])
def test_bad_contrasts(wrong):
    with pytest.raises(ScopeError):
        Contrasts(*wrong)


def test_last_states(scope):
    rows = [[5, 6, 7, 8], [9], [10, 11]]
    for site in ("resid_post", "z", "mlp_out"):
        found = last_states(scope, rows, site, layers=[0, 2])
        alone = torch.cat([last_states(scope, [r], site, layers=[0, 2], batch_tokens=1) for r in rows])
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    for wrong in (lambda: last_states(scope, []), lambda: last_states(scope, [[]]), lambda: last_states(scope, rows, "pattern"), lambda: last_states(scope, rows, layers=9)):
        with pytest.raises(ScopeError):
            wrong()


def test_interference(scope):
    ids = torch.randint(3, 98, (2, 7), generator=torch.Generator().manual_seed(1))
    v = torch.linspace(-1, 1, scope.d_model)
    a, b, nothing = [Edit("resid_post", layers=0, add=v)], [Edit("resid_post", layers=0, add=v.flip(0) * 2)], [Edit("resid_post", add=0.0)]
    share = interference(scope, ids, a, b)
    assert share.shape == (scope.n_layers,) and share[0] < 1e-4 and share[1:].max() > 1e-3
    assert interference(scope, ids, a, nothing).abs().max() == 0
    torch.testing.assert_close(interference(scope, ids, a, b), interference(scope, ids, b, a), atol=1e-4, rtol=1e-3)
    assert (interaction(scope, ids[0].tolist(), a, nothing).values[1:] == 0).all()
