"ZeroTuning on bad input and on models where it could go wrong."
import pytest
import torch

from architectures import VOCAB, tiny
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.steering.zerotuning import (Calibration, LabelledPrompts, calibrate, content_free_bias, label_logprobs, leverage, profile_heads,
                                            random_column_tuning, scaled_row, sentiment_prompts, zerotuning)

IDS = torch.randint(3, VOCAB - 1, (2, 9), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss", "gemma2", "mistral", "qwen3_moe"])
def test_the_pattern_is_the_papers_rule(family):
    scope = Scope(tiny(family))
    plain = scope.read(IDS, "pattern", layers=0)["pattern"][:, 0]
    with scope.edit(*zerotuning(scope, gamma=3.0, layers=0, heads=[1, 2])):
        edited = scope.read(IDS, "pattern", layers=0)["pattern"][:, 0]
    if family == "gpt_oss":  # a learned sink shares the denominator, so only the ratios are the paper's
        torch.testing.assert_close(edited[:, 1, 3, 0] / edited[:, 1, 3, 2], 3 * plain[:, 1, 3, 0] / plain[:, 1, 3, 2], rtol=1e-3, atol=1e-4)
    else:
        seen = plain[:, 1:3, :, :1] > 0  # a sliding window may hide the first key
        torch.testing.assert_close(edited[:, 1:3], torch.where(seen, scaled_row(plain[:, 1:3], 3.0), plain[:, 1:3]), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(edited[:, [0, 3]], plain[:, [0, 3]])


def test_one_token_has_nothing_to_move():
    scope = Scope(tiny("llama"))
    plain = scope.logits([5])
    with scope.edit(*zerotuning(scope, gamma=4.0)):
        torch.testing.assert_close(scope.logits([5]), plain)


@pytest.mark.parametrize("wrong", [dict(gamma=0.0), dict(gamma=-1.0), dict(gamma=float("nan")), dict(gamma=float("inf")), dict(layers=9), dict(layers=[]), dict(heads=[7]), dict(heads={99: [1]})])
def test_what_cannot_be_meant(wrong):
    scope = Scope(tiny("llama"))
    with pytest.raises(ScopeError), scope.edit(*zerotuning(scope, **{"gamma": 2.0, **wrong})):
        scope.logits([5, 6])


def test_the_control_never_takes_the_first_column():
    scope = Scope(tiny("llama"))
    assert {random_column_tuning(scope, seed=s)[0].keys for s in range(60)} == set(range(1, 8))
    with pytest.raises(ScopeError, match="among"):
        random_column_tuning(scope, among=1)


def test_prompts_differ_and_shuffling_keeps_the_labels():
    task = sentiment_prompts(3072)
    assert len(set(task.prompts)) == 3072 and sum(task.answers) == 1536
    assert sorted(task.shuffled(0).answers) == sorted(task.answers) and task.shuffled(0).answers != task.answers
    with pytest.raises(ScopeError, match="different reviews"):
        sentiment_prompts(4000)


def test_among_equals_the_gentlest_gamma_is_chosen():
    found = Calibration([0.5, 1.0, 2.0, 4.0], [0.7, 0.6, 0.8, 0.8], [3.0, 2.0, 2.5, 2.9], "accuracy")
    assert found.gamma == 2.0 and Calibration(found.gammas, found.accuracies, found.entropies, "entropy").gamma == 1.0


@pytest.mark.model
def test_on_the_real_model():
    from tokenscope import load
    scope = load()
    task = sentiment_prompts(8)
    scores, entropies = label_logprobs(scope, task)
    alone = torch.cat([label_logprobs(scope, task[i:i + 1])[0] for i in range(8)])
    torch.testing.assert_close(scores, alone, rtol=1e-3, atol=1e-3)
    assert (entropies > 0).all() and content_free_bias(scope, task, "Review: N/A\nSentiment (negative or positive):").shape == (2,)
    assert profile_heads(scope, task, gamma=2.0).gains.shape == (9, 8)
    assert calibrate(scope, task, gammas=[1.0, 2.0]).gammas == [1.0, 2.0]
    lever = leverage(scope, "The capital of France is", gammas=(1.0, 0.5), tokens=(0,))
    assert lever.kl[0] == 0 and lever.kl[1] > 0
    for wrong in (task[:0], LabelledPrompts([""], [0], task.labels), LabelledPrompts(["a"], [0], [" x", " x"])):
        with pytest.raises(ScopeError):
            label_logprobs(scope, wrong)
    for wrong in (dict(unit="row"), dict(score="f1")):
        with pytest.raises(ScopeError):
            profile_heads(scope, task, **wrong)
