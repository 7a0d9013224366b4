"GrAInS on bad input, on four architectures, in half precision, with images, and against a plain loop of integrated gradients."
from dataclasses import replace

import pytest
import torch

from architectures import VOCAB, tiny
from tokenscope.change.contrasts import AnswerInputs, Contrasts, contrast_inputs, preference
from tokenscope.change.directions import load_directions
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.steering.grains import (ATTRIBUTIONS, common_axis, contrast_attribution, grains, grains_directions, influential_tokens, preference_without, random_grains,
                                        turning_edits)

SEED = torch.Generator().manual_seed(5)
draw = lambda *lengths: [torch.randint(3, VOCAB - 3, (n,), generator=SEED).tolist() for n in lengths]
PAIRS = Contrasts(draw(6, 3, 9), draw(2, 1, 3), draw(1, 4, 2))
TRIPLE = (PAIRS.prompts, PAIRS.right, PAIRS.wrong)
SMALL = dict(contrasts=PAIRS, k=2, n_steps=4)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "qwen3_moe"])
def scope(request):
    return Scope(tiny(request.param))


def by_a_plain_loop(scope, prompt, answer, n_steps):
    "Integrated gradients of the log-probability of an answer: one target token after the other, as Inseq does it."
    e, total = scope.structure.embedding(torch.tensor([prompt + answer])).detach(), torch.zeros(len(prompt) + len(answer))
    for j, target in enumerate(answer):
        x = e[:, :len(prompt) + j]
        for s in range(n_steps):
            point = ((s + 0.5) / n_steps * x).requires_grad_()
            logp = scope.model(inputs_embeds=point).logits[0, -1].float().log_softmax(-1)[target]
            total[:x.shape[1]] += (torch.autograd.grad(logp, point)[0] * x).sum(-1)[0] / n_steps
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_those_of_a_plain_loop(family):
    scope = Scope(tiny(family))
    for i, s in enumerate(contrast_attribution(scope, PAIRS, n_steps=5)):
        torch.testing.assert_close(s.right, by_a_plain_loop(scope, PAIRS.prompts[i], PAIRS.right[i], 5), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(s.wrong, -by_a_plain_loop(scope, PAIRS.prompts[i], PAIRS.wrong[i], 5), rtol=1e-3, atol=1e-4)


def test_alone_in_a_batch_and_in_pieces(scope):
    for method in ATTRIBUTIONS[:3]:
        whole = contrast_attribution(scope, PAIRS, method, n_steps=4)
        for pieces in ([contrast_attribution(scope, PAIRS[[i]], method, n_steps=4)[0] for i in range(3)], contrast_attribution(scope, TRIPLE, method, n_steps=4, batch_tokens=1)):
            for a, b in zip(whole, pieces):
                torch.testing.assert_close(a.prompt, b.prompt, rtol=2e-3, atol=2e-4)
    plain = preference(scope, PAIRS)
    absent = [torch.tensor([True] + [False] * (len(p) - 1)) for p in PAIRS.prompts]
    together, alone = preference_without(scope, PAIRS, absent, 7), torch.cat([preference_without(scope, PAIRS[[i]], absent[i:i + 1], 7) for i in range(3)])
    by_hand = preference(scope, replace(PAIRS, prompts=[[7, *p[1:]] for p in PAIRS.prompts]))
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together, by_hand, rtol=1e-3, atol=1e-4)
    assert (plain - together).abs().max() > 1e-4


def test_edits_turn_by_the_angle_and_come_off(scope):
    plain = scope.logits(PAIRS.prompts[0])
    scores = contrast_attribution(scope, PAIRS, n_steps=4)
    for reduce in ("pca", "centred pca", "mean"):
        for sides in ("both", "pos", "neg"):
            made = grains_directions(scope, PAIRS, scores, 2, [0, 2], reduce, sides)
            edits = turning_edits(scope, made, angle=-25.0)
            before = scope.read(PAIRS.prompts[0], layers=0)["resid_post"]
            with scope.edit(*edits):
                after = scope.read(PAIRS.prompts[0], layers=0)["resid_post"]
            cosine = torch.cosine_similarity(before, after, dim=-1)[0, 0]
            assert cosine[0] == pytest.approx(1, abs=1e-5) and cosine[1:].acos().rad2deg().max() == pytest.approx(25, abs=0.2)
            torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1), rtol=1e-4, atol=1e-4)
    assert torch.equal(scope.logits(PAIRS.prompts[0]), plain)


def test_one_seed_one_control():
    scope = Scope(tiny("llama"))
    first, again, other = (random_grains(scope, **SMALL, angle=20, seed=s)[0].fn.vector for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert grains(scope, **SMALL, strength=0) == [] == grains(scope, **SMALL, angle=0) and len(grains(scope, **SMALL, layers=[0, 1], keep_norm=False)) == 2
    plus, minus = influential_tokens(contrast_attribution(scope, PAIRS, n_steps=4)[1], k=10)
    assert plus.sum(-1).tolist() == [1, 1] and not (plus & minus).any()
    each = influential_tokens(contrast_attribution(scope, PAIRS, n_steps=4)[2], 2, each=True)
    assert each.shape == (2, 2, 9) and (each.sum(-1) == 2).all()


@pytest.mark.parametrize("wrong", [dict(k=0), dict(k=1.5), dict(n_steps=0), dict(layers=99), dict(angle=float("nan")), dict(angle=181), dict(angle="much"), dict(angle=5, keep_norm=False),
                                   dict(strength=float("inf")), dict(strength=1e38), dict(reduce="median"), dict(sides="left"), dict(attribution="shap"), dict(baseline="noise"), dict(replace_by=VOCAB),
                                   dict(contrasts=([], [], [])), dict(contrasts=([[5, 6]], [[7]], [[7]])), dict(contrasts=([[5, 6]], [[7]])), dict(contrasts=([[]], [[7]], [[8]])), dict(contrasts="text"),
                                   dict(contrasts=([[5] * 63], [[7, 8]], [[8]])), dict(contrasts=([[VOCAB]], [[7]], [[8]])), dict(contrasts=(["a text"], [" b"], [" c"])), dict(contrasts=([[5]], [[7]], [[8]])),
                                   dict(images=torch.zeros(1, 3, 8, 8))])
def test_what_cannot_be_meant(wrong):
    with pytest.raises((ScopeError, TypeError)):
        grains(Scope(tiny("llama")), **{**SMALL, **wrong})


def test_a_direction_of_another_width_or_of_nothing(tmp_path):
    scope, wide = Scope(tiny("llama")), Scope(tiny("llama", hidden_size=64))
    scores = contrast_attribution(scope, PAIRS, n_steps=4)
    made = grains_directions(scope, PAIRS, scores, 2)
    saved = load_directions(made.save(tmp_path / "d.safetensors"), scope)
    assert torch.equal(saved.vectors, made.vectors) and saved.meta["reduce"] == "pca"
    with pytest.raises(ScopeError, match="do not fit"):
        load_directions(tmp_path / "d.safetensors", wide)
    with pytest.raises(ScopeError, match="another width"):
        turning_edits(wide, saved, angle=10)
    with pytest.raises(ScopeError, match="do not belong"):
        grains_directions(scope, PAIRS, scores[:2], 2)
    assert not common_axis(torch.zeros(4, 2, 8)).any()
    same = ([[7, 7, 7, 7]], [[8]], [[9]])  # what is replaced is what replaces it
    with pytest.raises(ScopeError, match="No direction"):
        grains_directions(scope, same, contrast_attribution(scope, same, "random"), 1, replace_by=7)


def test_half_precision():
    brain, half = Scope(tiny("llama").to(torch.bfloat16)), Scope(tiny("llama").to(torch.float16))
    for scope in (brain, half):
        for more in (dict(angle=90), dict(strength=1e4 if scope is half else 1e15)):
            with scope.edit(*grains(scope, **SMALL, **more)):
                assert scope.logits(PAIRS.prompts[0]).isfinite().all()
    with pytest.raises(ScopeError, match="Too strong for float16"):
        grains(half, **SMALL, strength=1e5)
    with pytest.raises(ScopeError, match="Too strong for bfloat16"):
        grains(brain, **SMALL, strength=1e25)


def test_images_are_inputs_like_words():
    scope = Scope(tiny("llava"))
    generator = torch.Generator().manual_seed(0)
    images, prompts = torch.randn(2, 3, 8, 8, generator=generator), [[5, 98, 98, 98, 98, 6, 7], [98, 98, 98, 98, 8]]
    pairs = (prompts, [[9, 10], [11]], [[12], [13]])
    found = contrast_attribution(scope, pairs, n_steps=4, images=images)
    assert [s.is_image.tolist() for s in found] == [[t == 98 for t in p] for p in prompts]
    changed = contrast_attribution(scope, pairs, n_steps=4, images=images.flip(0))
    assert (found[0].prompt - changed[0].prompt).abs().max() > 1e-7 and all(s.prompt[s.is_image].abs().max() > 0 for s in found)
    inputs = contrast_inputs(scope, pairs, images)
    assert isinstance(inputs, AnswerInputs)
    ids = torch.tensor([prompts[1] + [11]])
    direct = scope.model(input_ids=ids, pixel_values=images[1:]).logits[0, 4].log_softmax(-1)[11]
    torch.testing.assert_close(inputs.answers()[1], direct)
    with scope.edit(*grains(scope, contrasts=pairs, images=images, k=2, n_steps=4, angle=20)):
        assert scope.logits(prompts[0]).isfinite().all()
