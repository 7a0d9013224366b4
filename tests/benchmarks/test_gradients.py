"What integrated gradients cost beside Inseq and Captum, at equal steps and to an equal error, on the same model, targets, baseline and quantity."
import pytest
import torch

from measure import SMOKE, ratio_table, show
from peers import Inseq
from tokenscope.measure.attribution import integrated_gradients
from tokenscope.change.contrasts import Contrasts
from tokenscope.core.scope import load
from tokenscope.steering.grains import contrast_attribution

TEXT, CONTINUATION, STEPS = "The Eiffel Tower stands in Paris, and the Colosseum stands in", " Rome, the capital", 3 if SMOKE else 16


@pytest.fixture(scope="module")
def scope():
    torch.set_num_threads(1)
    return load()


def with_captum(scope, continuation, steps, baseline):
    "One call a target, as Captum's users write it; (token,) each."
    attr = pytest.importorskip("captum.attr")
    start, more = (scope.tokenizer(t)["input_ids"] for t in (TEXT, continuation))
    found = []
    for j, target in enumerate(more):
        x = scope.structure.embedding(torch.tensor([start + more[:j]])).detach()
        score = lambda e, target=target: scope.model(inputs_embeds=e, use_cache=False).logits[:, -1, target]
        found.append(attr.IntegratedGradients(score).attribute(x, baseline.expand_as(x), n_steps=steps)[0].sum(-1).detach())
    return found


def test_equal_steps(scope):
    unknown = scope.tokenizer.unk_token_id
    baseline = scope.structure.embedding.weight[unknown].detach()
    ours = lambda continuation: integrated_gradients(scope, TEXT, continuation, baseline=unknown, steps=STEPS, rule="gauss-legendre", quantity="logit")
    try:
        inseq = Inseq(scope)
    except ImportError:
        inseq = None
    pieces = [scope.tokenizer.decode(scope.tokenizer(CONTINUATION)["input_ids"][:n]) for n in (1, 4)]
    for theirs in (with_captum(scope, CONTINUATION, STEPS, baseline), inseq and inseq.integrated_gradients(TEXT, CONTINUATION, STEPS)):
        for mine, row in zip(ours(CONTINUATION).values, theirs if theirs is not None else []):
            row = row[~row.isnan()].float()
            torch.testing.assert_close(mine[:len(row)].float(), row, rtol=5e-3, atol=5e-3 * row.abs().max().item())
    for piece, n in zip(pieces, ("one target", "four targets")):
        who = "Inseq" if inseq else "Captum"
        variants = {"tokenscope": {f"{STEPS} points, {n}": lambda: ours(piece)}}
        if inseq:
            variants["Captum"] = {f"{STEPS} points, {n}": lambda: with_captum(scope, piece, STEPS, baseline)}
        plain = (lambda: inseq.integrated_gradients(TEXT, piece, STEPS)) if inseq else (lambda: with_captum(scope, piece, STEPS, baseline))
        ratio_table("Integrated gradients of 16 tokens", plain, variants, {f"{STEPS} points, four targets": 0.75}, f"ratio to {who}")


def test_equal_error(scope):
    "How many points until the sum of the attributions misses at most 5 % of the change."
    pytest.importorskip("inseq")
    inseq, piece, limit = Inseq(scope), " Rome", 512
    found = integrated_gradients(scope, TEXT, piece, baseline=inseq.baseline, quantity="logit", tol=0.05, max_steps=limit)
    ids = torch.tensor([sum((scope.tokenizer(t)["input_ids"] for t in (TEXT, piece)), [])])
    with torch.no_grad():
        x = scope.structure.embedding(ids[:, :-1])
        ends = scope.model(inputs_embeds=torch.cat([x, scope.structure.embedding.weight[inseq.baseline].expand_as(x)]), use_cache=False).logits[:, -1, ids[0, -1]]
    missing = lambda steps: abs((inseq.integrated_gradients(TEXT, piece, steps).nansum() / (ends[0] - ends[1]) - 1).item())
    steps, gap = 16, missing(16)
    while steps < limit and gap > 0.05:
        steps, gap = 2 * steps, missing(2 * steps)
    show("Integrated gradients to a gap of 5 %, one target", f"points on the path, at most {limit}",
         {"tokenscope": {"adaptive": found.steps, "gap left, %": 100 * found.gap.max().item(), "estimated error, %": 100 * found.errors.max().item()}, "Inseq": {"doubled until there": steps, "gap left, %": 100 * gap}})


def target_by_target(scope, continuation, steps):
    "The scores of a whole answer by a plain loop: every target token alone, all its points in one forward, as Inseq and Captum do it."
    start, more = (scope.tokenizer(t)["input_ids"] for t in (TEXT, continuation))
    total, alphas = torch.zeros(len(start) + len(more)), (torch.arange(steps) + 0.5) / steps
    for j, target in enumerate(more):
        x = scope.structure.embedding(torch.tensor([start + more[:j]])).detach()
        points = (alphas[:, None, None] * x).requires_grad_()
        logp = scope.model(inputs_embeds=points, use_cache=False, logits_to_keep=1).logits[:, -1].log_softmax(-1)[:, target]
        total[:x.shape[1]] += (torch.autograd.grad(logp.sum(), points)[0].mean(0) * x[0]).sum(-1)
    return total


def test_contrast(scope):
    "GrAInS' scores of a pair of answers, at equal points, targets, baseline and rule."
    answers = CONTINUATION, " Athens, the city"
    pair = Contrasts([TEXT], [answers[0]], [answers[1]])
    ours = lambda: contrast_attribution(scope, pair, n_steps=STEPS)
    theirs = lambda: [target_by_target(scope, a, STEPS) for a in answers]
    for mine, row in zip((ours()[0].right, -ours()[0].wrong), theirs()):
        torch.testing.assert_close(mine, row, rtol=1e-2, atol=1e-2 * row.abs().max().item())
    work, what = "Integrated gradients of two answers of four tokens, GrAInS", f"{STEPS} points, both answers"
    ratio_table(work, theirs, {"tokenscope": {what: ours}}, {what: 0.75}, "ratio to a plain loop")
    try:
        inseq = Inseq(scope)
    except ImportError:
        return
    ratio_table(work, lambda: [inseq.integrated_gradients(TEXT, a, STEPS) for a in answers], {"tokenscope": {what: ours}}, {what: 0.75}, "ratio to Inseq")
