"Reading and editing agree with transformers' own outputs on every architecture of the matrix."
import pytest
import torch

from architectures import ALL, CLOSED, VOCAB, tiny
from tokenscope.core.edit import Edit
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope

IDS = torch.randint(3, VOCAB - 1, (2, 7), generator=torch.Generator().manual_seed(1))
close = dict(rtol=2e-4, atol=2e-5)


@pytest.fixture(params=ALL)
def scope(request):
    scope = Scope(tiny(request.param))
    scope.family = request.param
    return scope


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def state(model):
    "Everything an edit could leave behind."
    configs = {id(m.config): m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
    return hooks_on(model), sorted(configs.values(), key=str), "generate" in model.__dict__, "forward" in model.base_model.__dict__


def eager(scope):
    "The model's own explicit attention weights."
    impl = scope.model.config._attn_implementation
    scope.model.set_attn_implementation("eager")
    try:
        return scope.model(IDS, output_attentions=True).attentions
    finally:
        scope.model.set_attn_implementation(impl)


def test_residual_stream_is_hidden_states(scope):
    hidden = scope.model(IDS, output_hidden_states=True).hidden_states
    trace = scope.read(IDS, ["resid_pre", "resid_post"])
    for layer in range(scope.n_layers - 1):  # the last entry of hidden_states has the final norm applied
        torch.testing.assert_close(trace["resid_post"][:, layer], hidden[layer + 1], **close)
        torch.testing.assert_close(trace["resid_pre"][:, layer + 1], hidden[layer + 1], **close)


def test_logits_are_the_plain_forwards(scope):
    plain = scope.model(IDS).logits
    torch.testing.assert_close(scope.read(IDS, "logits")["logits"], plain, **close)
    torch.testing.assert_close(scope.read(IDS, "logits", positions=[-1, 2])["logits"], plain[:, [6, 2]], **close)


def test_last_layer_through_the_lens_is_the_model(scope):
    last = scope.read(IDS, "resid_post", layers=-1)["resid_post"][:, 0]
    torch.testing.assert_close(scope.unembed(last), scope.model(IDS).logits, **close)


def test_pattern_is_eager_attention(scope):
    if scope.family in CLOSED:
        with pytest.raises(ScopeError, match="Attention is closed"):
            scope.read(IDS, "pattern")
        return
    trace = scope.read(IDS, ["pattern", "attn_scores", "q", "k", "v", "z"])
    for layer, weights in enumerate(eager(scope)):
        torch.testing.assert_close(trace["pattern"][:, layer], weights, **close)
    if scope.family != "gpt_oss":  # there the softmax has a learned sink beside the scores
        torch.testing.assert_close(trace["attn_scores"].softmax(-1), trace["pattern"], **close)
    v = trace["v"].repeat_interleave(scope.n_heads // trace["v"].shape[3], dim=3)
    torch.testing.assert_close(torch.einsum("blhqk,blkhd->blqhd", trace["pattern"], v), trace["z"], **close)


def test_parts_add_up(scope):
    if scope.family == "bloom":
        with pytest.raises(ScopeError, match="adds the residual itself"):
            scope.read(IDS, "attn_out")
        return
    trace = scope.read(IDS, ["resid_pre", "attn_out", "mlp_out", "resid_post"])
    if scope.family == "granite":  # its residual additions are scaled by a constant
        added = 0.5 * (trace["attn_out"] + trace["mlp_out"])
    else:
        added = trace["attn_out"] + trace["mlp_out"]
    torch.testing.assert_close(trace["resid_pre"] + added, trace["resid_post"], **close)


def test_resid_mid_or_a_reason(scope):
    parallel = ("gpt_neox", "falcon", "cohere2")
    if scope.family in parallel:
        with pytest.raises(ScopeError, match="side by side"):
            scope.read(IDS, "resid_mid")
        return
    trace = scope.read(IDS, ["resid_pre", "resid_mid"])
    if scope.family not in ("granite", "bloom"):
        trace = scope.read(IDS, ["resid_pre", "attn_out", "resid_mid"])
        torch.testing.assert_close(trace["resid_pre"] + trace["attn_out"], trace["resid_mid"], **close)
        with scope.edit(Edit("resid_mid", layers=1, set=0.25, positions="all"), Edit("mlp_out", layers=1, set=0.0, positions="all")):
            after = scope.read(IDS, "resid_post", layers=1)["resid_post"]
        torch.testing.assert_close(after, torch.full_like(after, 0.25), **close)


def test_routers_or_a_reason(scope):
    if scope.family not in ("mixtral", "olmoe", "qwen3_moe", "gpt_oss"):
        with pytest.raises(ScopeError, match="no router"):
            scope.read(IDS, "router_logits")
        return
    logits = scope.read(IDS, "router_logits")["router_logits"]
    own = scope.model(IDS, output_router_logits=True).router_logits
    torch.testing.assert_close(logits, torch.stack(own, 1).view(2, 7, 3, -1).transpose(1, 2), **close)


def test_padding_on_either_side_changes_nothing(scope):
    short, long = IDS[0, :4].tolist(), IDS[1].tolist()
    alone = scope.read([short], ["resid_post", "logits"])
    for side in ("left", "right"):
        both = scope.read(scope.encode([short, long], padding_side=side), ["resid_post", "logits"])
        real = both.mask[0]
        torch.testing.assert_close(both["resid_post"][0][:, real], alone["resid_post"][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(both["logits"][0][real], alone["logits"][0], rtol=1e-3, atol=1e-4)


def test_neutral_edit_is_bit_equal_and_nothing_stays(scope):
    before, plain = state(scope.model), scope.model(IDS).logits
    sites = ["resid_post", "mlp_out", "embed", "logits"] + ([] if scope.family in CLOSED else ["attn_scores", "z", "pattern"])
    with scope.edit(*[Edit(s, add=0.0) for s in sites], *[Edit(s, scale=1.0) for s in sites]):
        assert torch.equal(scope.model(IDS).logits, plain)
    with pytest.raises(ZeroDivisionError), scope.edit(Edit("resid_post", layers=1, fn=lambda x: 1 / 0), Edit("embed", add=1.0)):
        scope.model(IDS)
    assert state(scope.model) == before and torch.equal(scope.model(IDS).logits, plain)


def test_identity_function_is_bit_equal(scope):
    sites = ["resid_pre", "resid_post"] + ([] if scope.family in CLOSED else ["attn_scores", "pattern", "q", "k", "v", "z"])
    identity = [Edit(s, fn=lambda x: x.clone(), positions="all") for s in sites]
    with torch.no_grad():
        plain = scope.model(IDS).logits
        with scope.edit(*identity):
            assert torch.equal(scope.model(IDS).logits, plain)
    with scope.edit(*identity):  # with a graph it may be the explicit attention that answers
        torch.testing.assert_close(scope.model(IDS).logits, plain)


def test_bias_before_the_softmax(scope):
    if scope.family in CLOSED:
        pytest.skip("its attention does not go through transformers' attention interface")
    edit = Edit("attn_scores", layers=1, add=2.0, keys=0, heads=[1, 3])
    base = scope.read(IDS, ["attn_scores", "pattern"], layers=1)
    with scope.edit(edit):
        tilted = scope.read(IDS, ["attn_scores", "pattern"], layers=1)
    first = base["attn_scores"][:, 0, :, :, 0]
    rise = (tilted["attn_scores"][:, 0, :, :, 0] - first) * (first > -1e30)  # a sliding window hides the first key from late queries
    wanted = torch.tensor([0.0, 2, 0, 2]).view(1, 4, 1) * (first > -1e30)
    torch.testing.assert_close(rise, wanted, rtol=1e-3, atol=1e-4)
    with scope.edit(Edit("attn_scores", layers=1, fn=lambda s: s + 2.0, keys=0, heads=[1, 3])):
        torch.testing.assert_close(scope.read(IDS, "pattern", layers=1)["pattern"], tilted["pattern"], **close)


@pytest.mark.parametrize("how", [{}, dict(num_beams=2), dict(do_sample=True, seed=3), dict(use_cache=False)])
def test_generate_with_edits(scope, how):
    rows = [IDS[0].tolist(), IDS[1, :4].tolist()]
    site = Edit("resid_post", layers=1, add=1.0) if scope.family in CLOSED else Edit("attn_scores", layers=1, add=1.5, keys=0)
    later = Edit("resid_pre", layers=2, add=0.5, positions="generated")
    before = state(scope.model)
    with scope.edit(site, later):
        both = scope.generate(rows, max_new_tokens=4, eos_token_id=None, **how)
        if not how.get("do_sample"):  # sampled rows share one random stream
            alone = [scope.generate(r, max_new_tokens=4, eos_token_id=None, **how) for r in rows]
            assert both == alone
        if how.get("use_cache") is False:
            assert both == scope.generate(rows, max_new_tokens=4, eos_token_id=None)
    assert state(scope.model) == before and all(len(r) == 4 for r in both)
