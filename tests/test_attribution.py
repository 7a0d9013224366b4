"Attributions: equal to Captum's, complete where that is known by hand, honest where it is not, clean on every architecture."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import ALL, VOCAB, tiny
from tokenscope.measure.attribution import gradient_x_input, integrated_gradients, occlusion, random_attribution
from tokenscope.measure.predictions import embedding_baseline, predictions_of
from tokenscope.measure.direct_logits import direct_logit_attribution, frozen_norm, residual_parts
from tokenscope.core.edit import Edit
from tokenscope.text.names import ScopeError
from tokenscope.measure.paths import path_integral, path_points
from tokenscope.core.scope import Scope, load

IDS, MORE = [5, 6, 7, 8, 9], [11, 12, 13]
ROUTED = ("mixtral", "olmoe", "qwen3_moe", "gpt_oss")  # a token's experts change along the path: the score jumps, and no gradient sees a jump
METHODS = [gradient_x_input, integrated_gradients, occlusion, random_attribution]


@pytest.fixture(scope="module")
def scope():
    return Scope(tiny("llama"))


def lively(family):
    "A tiny model whose norms have weights and biases of their own."
    model = tiny(family)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return Scope(model)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# The integral

coefficients = st.lists(st.integers(-3, 3), min_size=3, max_size=3)


@settings(max_examples=30, deadline=None)
@given(coefficients, coefficients, coefficients, st.sampled_from(["middle", "trapezoid", "gauss-legendre"]), st.integers(2, 7))
def test_linear_and_quadratic_scores_are_shared_out_as_by_hand(w, x, base, rule, steps):
    w, x, base = (torch.tensor(v).float() for v in (w, x, base))
    found = path_integral(lambda p: torch.stack([p @ w, (w * p ** 2).sum(1)], 1), x, base, steps=steps, rule=rule)
    torch.testing.assert_close(found.values[0].float(), w * (x - base), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values[1].float(), w * (x ** 2 - base ** 2), rtol=1e-4, atol=1e-3)


def test_weights_sum_to_one():
    for rule in ("middle", "trapezoid", "gauss-legendre"):
        alphas, weights = path_points(rule, 7)
        assert float(weights.sum()) == pytest.approx(1) and 0 <= alphas.min() and alphas.max() <= 1


STEEP = lambda p: torch.stack([torch.tanh(300 * (p.sum(1) - 0.37)), p[:, 0] * p[:, 1]], 1)


@pytest.mark.parametrize("tol", [0.1, 0.01, 0.001])
def test_points_are_added_until_every_target_is_within_the_tolerance(tol):
    found = path_integral(STEEP, torch.tensor([0.7, 0.3]), torch.zeros(2), tol=tol)
    assert (found.error <= tol).all() and (found.gap <= found.error + 1e-9).all()
    exact = torch.tensor([[1.4, 0.6], [0.105, 0.105]], dtype=torch.float64)
    assert ((found.values - exact).abs() <= tol * exact.sum(1, keepdim=True)).all()
    even = path_integral(STEEP, torch.tensor([0.7, 0.3]), torch.zeros(2), steps=len(found.alphas))
    assert even.gap[0] > found.gap[0]


def test_no_point_is_computed_twice_and_the_limit_is_kept():
    asked = []

    def F(p):
        asked.extend(p.detach().sum(1).tolist())
        return STEEP(p)[:, :1]
    found = path_integral(F, torch.tensor([0.5, 0.5]), torch.zeros(2), tol=1e-7, max_steps=60)
    assert len(asked) == len(set(asked)) == len(found.alphas) <= 60 and float(found.error) > 1e-7


def test_a_jump_at_the_baseline_is_never_called_complete():
    "Near zero this score changes on every scale; the sum of a few points can look right by luck, the bound cannot."
    score = lambda p: torch.sign(p.sum(1, keepdim=True)) + 1e-3 * p.sum(1, keepdim=True).abs().sqrt()
    found = path_integral(score, torch.ones(2), torch.zeros(2), tol=0.05, max_steps=120)
    assert float(found.error) > 0.05 and found.dropped == 1


# Against Captum, and against a plain loop

def plain(scope, ids, target, base, steps):
    "Integrated gradients of a log-probability, written down without the package."
    x = scope.structure.embedding(torch.tensor(ids)).float()
    total = torch.zeros_like(x)
    for k in range(steps):
        point = (base + (k + 0.5) / steps * (x - base)).detach().requires_grad_()
        score = scope.model(inputs_embeds=point[None]).logits[0, -1].log_softmax(-1)[target]
        total += torch.autograd.grad(score, point)[0] / steps
    return ((x - base) * total).sum(-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3_text"])
def test_equals_a_plain_loop(family):
    scope = lively(family)
    base, _ = embedding_baseline(scope, "mean", len(IDS))
    found = integrated_gradients(scope, IDS, [11], steps=20)
    torch.testing.assert_close(found.values[0], plain(scope, IDS, 11, base, 20), rtol=1e-4, atol=1e-5 * float(found.values.abs().max()))


@pytest.mark.parametrize("rule, captums", [("middle", "riemann_middle"), ("gauss-legendre", "gausslegendre"), ("trapezoid", "riemann_trapezoid")])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_equals_captum(family, rule, captums):
    attr = pytest.importorskip("captum.attr")
    scope, steps = lively(family), 12
    base, _ = embedding_baseline(scope, 3, len(IDS))
    score = lambda e: scope.model(inputs_embeds=e).logits[:, -1].log_softmax(-1)[:, 11]
    x = scope.structure.embedding(torch.tensor([IDS])).detach()
    theirs = attr.IntegratedGradients(score).attribute(x, base[None], n_steps=steps, method=captums)[0].sum(-1).float()
    theirs = theirs * (steps / (steps - 1) if rule == "trapezoid" else 1)  # Captum's trapezoid weights sum to (n - 1)/n
    ours = integrated_gradients(scope, IDS, [11], baseline=3, steps=steps, rule=rule).values[0]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    theirs = attr.InputXGradient(score).attribute(x.clone().requires_grad_())[0].sum(-1).detach()
    assert (gradient_x_input(scope, IDS, [11]).values[0] - theirs).abs().max() <= 1e-5 * theirs.abs().max()


# On models

@pytest.mark.parametrize("family", ALL)
def test_contract_on_every_architecture(family):
    scope = lively(family)
    model = scope.model
    next(iter(model.parameters())).requires_grad_(True)
    scope.structure.layers[0].train()
    before = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()], hooks(model)
    for method in METHODS:
        found = method(scope, IDS, MORE)
        assert found.values.shape == (3, 7) and torch.isfinite(found.values).all()
        assert not found.values[~torch.tensor([[j < 5 + i for j in range(7)] for i in range(3)])].any() and found.values[2].any()
        assert found._repr_html_() and len(found.to_df()) == 5 + 6 + 7
    fine = integrated_gradients(scope, IDS, MORE, steps=300)
    assert torch.isfinite(fine.gap).all() and (family in ROUTED or (fine.gap < 0.02).all() and fine.met)
    assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()], hooks(model)) == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", ROUTED)
def test_the_jumps_of_a_router_are_not_called_complete(family):
    found = integrated_gradients(lively(family), IDS, MORE, tol=0.02, max_steps=300)
    assert not found.met and found.steps > 250 and any(found.scores(i).hatched for i in range(3))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_targets_together_are_targets_alone(family):
    scope = lively(family)
    for method in (gradient_x_input, integrated_gradients, occlusion):
        together = method(scope, IDS, MORE)
        for i, t in enumerate(MORE):
            alone = method(scope, IDS + MORE[:i], [t])
            torch.testing.assert_close(together.values[i, :5 + i], alone.values[0], rtol=1e-3, atol=1e-5)


def test_batch_size_padding_and_inference_mode_do_not_matter(scope):
    found = integrated_gradients(scope, IDS)
    padded = {"input_ids": torch.tensor([[0, 0, *IDS]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]])}
    with torch.inference_mode():
        inside = integrated_gradients(scope, IDS)
    for other in (integrated_gradients(scope, IDS, batch_tokens=1), integrated_gradients(scope, torch.tensor(IDS)), integrated_gradients(scope, padded), inside):
        torch.testing.assert_close(found.values, other.values, rtol=1e-4, atol=1e-6)


def test_one_token_and_its_own_next_token(scope):
    best = int(scope.logits([5], positions=-1).argmax())
    assert integrated_gradients(scope, [5]).targets == [str(best)] and occlusion(scope, [5]).values.shape == (1, 1)


def test_occlusion_is_a_difference_of_two_forwards(scope):
    swapped = IDS.copy()
    swapped[2] = 40
    score = lambda ids: float(scope.logits(ids)[0, -1].log_softmax(-1)[11])
    assert float(occlusion(scope, IDS, [11], replace=40).values[0, 2]) == pytest.approx(score(IDS) - score(swapped), abs=1e-5)


def test_edits_stay_in_force(scope):
    for edit in (Edit("resid_post", layers=0, scale=0.0), Edit("embed", scale=0.5), Edit("logits", scale=2.0)):
        with scope.edit(edit):
            found = integrated_gradients(scope, IDS, [11], tol=0.02)
            own = float(scope.logits(IDS)[0, -1].log_softmax(-1)[11])
        assert found.met and float(found.path.ends[1]) == pytest.approx(own, abs=1e-4)
        assert not torch.allclose(found.values, integrated_gradients(scope, IDS, [11]).values)


def test_a_gap_that_is_too_large_is_hatched_and_said(scope):
    coarse = integrated_gradients(scope, IDS, MORE, steps=1)
    for i in range(3):
        strip = coarse.scores(i)
        assert strip.hatched == bool(coarse.gap[i] > 0.05) and "1 points" in strip.note and "the mean embedding" in strip.note
    assert any(coarse.scores(i).hatched for i in range(3)) and not coarse.met
    assert "do not trust" in coarse._repr_html_()
    assert not occlusion(scope, IDS).scores().hatched and torch.isnan(occlusion(scope, IDS).gap).all()


def test_the_control_repeats_by_seed(scope):
    a, b, c = (random_attribution(scope, IDS, MORE, seed=s).values for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


# Refusals

@pytest.mark.parametrize("how, message", [
    (dict(text=[]), "batch is empty"), (dict(text=[IDS, IDS]), "takes one text"), (dict(text=[3] * 65), "too long"), (dict(text=[3] * 60, continuation=[4] * 9), "too long"),
    (dict(continuation=[]), "continuation is empty"), (dict(continuation=[VOCAB]), "outside the model's vocabulary"), (dict(continuation=-1), "outside the model's vocabulary"),
    (dict(continuation="x"), "No tokenizer"), (dict(baseline=torch.tensor([float("nan")] * 32)), "NaN or infinity"), (dict(baseline=torch.zeros(3)), "does not fit"),
    (dict(baseline=torch.zeros(2, 32)), "does not fit"), (dict(baseline="none"), "Unknown baseline"), (dict(baseline=VOCAB), "outside the model's vocabulary"),
    (dict(steps=0), "Too few steps"), (dict(steps=1, rule="trapezoid"), "Too few steps"), (dict(rule="left"), "Unknown rule"), (dict(tol=0.0), "tol must be above 0"),
    (dict(tol=float("nan")), "tol must be above 0"), (dict(quantity="loss"), "Unknown quantity"), (dict(batch_tokens=-1), "batch_tokens must be"), (dict(tol=0.1, max_steps=3), "Too few points")])
def test_what_is_refused(scope, how, message):
    with pytest.raises(ScopeError, match=message):
        integrated_gradients(scope, **{"text": IDS, **how})
    assert hooks(scope.model) == 0


def test_a_model_without_a_head_and_a_target_that_is_not_there(scope):
    with pytest.raises(ScopeError, match="No unembedding"):
        integrated_gradients(Scope(scope.model.model), IDS, [11])
    with pytest.raises(ScopeError, match="No such target"):
        occlusion(scope, IDS).scores(1)


def test_a_continuation_begins_where_a_token_begins():
    real = load()
    asked = predictions_of(real, "The capital of France is", " Paris, of course")
    assert [real.tokenizer.decode([t]) for t in asked.targets] == [" Paris", ",", " of", " course"] and asked.positions == [5, 6, 7, 8]
    with pytest.raises(ScopeError, match="share a token"):
        predictions_of(real, "The capital of Fra", "nce")


def test_the_real_model_states_its_gap():
    real, text = load(), "The capital of France is"
    assert not integrated_gradients(real, text, baseline="zero").met
    found = integrated_gradients(real, text, quantity="prob", tol=0.05)
    assert found.met and found.targets == [" Paris"] and float(found.gap) <= 0.05 and found.steps < 200


# Direct logits

@pytest.mark.parametrize("family", ALL)
def test_direct_logits_sum_to_the_logit(family):
    scope = lively(family)
    for position in (-1, 2):
        found = direct_logit_attribution(scope, IDS, position=position)
        assert found.gap < (0.02 if family == "gemma2" else 1e-4) and torch.isfinite(found.values).all()
        assert found.names[0] == "embed" and len([n for n in found.names if n != "bias"]) in (7, 4)
    assert direct_logit_attribution(scope, IDS, 11, against=12).gap < 0.05 and hooks(scope.model) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2"])
def test_the_parts_are_what_the_blocks_write(family):
    scope = lively(family)
    _, parts = residual_parts(scope, IDS)
    trace = scope.read(IDS, ["attn_out", "mlp_out", "resid_post"], positions=-1)
    torch.testing.assert_close(parts[1::2].float(), trace["attn_out"][0, :, 0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parts[2::2].float(), trace["mlp_out"][0, :, 0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parts.sum(0).float(), trace["resid_post"][0, -1, 0], rtol=1e-4, atol=1e-5)


def test_a_soft_cap_is_the_remainder():
    scope = lively("gemma2")
    found = direct_logit_attribution(scope, IDS)
    cap = scope.structure.config.final_logit_softcapping
    assert cap * torch.tanh(found.values.sum() / cap) == pytest.approx(found.logit, abs=1e-5) and found.remainder != 0


@pytest.mark.parametrize("d", [6, 7])
@pytest.mark.parametrize("kind", [torch.nn.RMSNorm, torch.nn.LayerNorm])
def test_a_norm_held_still_is_linear_and_right(kind, d):
    torch.manual_seed(0)
    norm, h, v = kind(d), torch.randn(d) + 3, torch.randn(d)
    with torch.no_grad():
        for p in norm.parameters():
            p.normal_()
        held, bias = frozen_norm(norm, h)
        torch.testing.assert_close((held(h) + bias).float(), norm(h), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(held(h - v) + held(v), held(h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how, message", [(dict(text=[IDS, IDS]), "take one text"), (dict(target=VOCAB), "outside the model's vocabulary"),
                                          (dict(target="a"), "No tokenizer"), (dict(position=9), "No such position")])
def test_direct_logits_refuse(scope, how, message):
    with pytest.raises(ScopeError, match=message):
        direct_logit_attribution(scope, **{"text": IDS, **how})
