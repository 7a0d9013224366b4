"Language steering on bad input, on four architectures, and its score on answers made by hand."
import sys

import pytest
import torch

from architectures import VOCAB, tiny
from tokenscope.data.declaration import UDHR_LANGUAGES
from tokenscope.data.languages import _every_language, identify_language, language_strip, open_questions, parallel_text
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.core.states import state_moments
from tokenscope.steering.clas_bench import (METHODS, ask, clas_bench, clas_score, continuation_nll, harmonic_mean, language_directions, own_question, parallel_gain,
                                            random_language_direction, steer_language)

SEED = torch.Generator().manual_seed(5)
SOURCE, TARGET = ([torch.randint(3, VOCAB - 1, (n,), generator=SEED).tolist() for n in lengths] for lengths in ((5, 9, 2), (4, 12, 7)))
PAIR = dict(source=SOURCE, target=TARGET)
REFUSED = (ScopeError, TypeError)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_every_method_runs_on_every_architecture(family):
    scope = Scope(tiny(family))
    plain = scope.logits(SOURCE[1])
    both = [state_moments(scope, x, second=True) for x in (SOURCE, TARGET)]
    for method in METHODS:
        edits = steer_language(scope, **PAIR, method=method, strength=3.0, layers=[0, 2])
        assert len(edits) == 2
        with scope.edit(*edits):
            assert (scope.logits(SOURCE[1]) - plain).abs().max() > 1e-4
        read, given = (language_directions(scope, **PAIR, method=method, moments=m) for m in (None, both))
        torch.testing.assert_close(read.lengths, given.lengths)
    assert torch.equal(scope.logits(SOURCE[1]), plain)


def test_the_way_back_is_minus_the_way_there_and_nothing_is_bit_equal():
    scope = Scope(tiny("llama"))
    there, back = (steer_language(scope, source=a, target=b, layers=1)[0].add for a, b in ((SOURCE, TARGET), (TARGET, SOURCE)))
    assert torch.equal(there, -back)
    plain = scope.logits(SOURCE[1])
    for edits in (steer_language(scope, source=SOURCE, target=list(SOURCE)), steer_language(scope, **PAIR, strength=0.0), steer_language(scope, strength=0)):
        assert edits == []
        with scope.edit(*edits):
            assert torch.equal(scope.logits(SOURCE[1]), plain)


def test_strength_has_the_stated_length():
    scope = Scope(tiny("llama"))
    d = language_directions(scope, **PAIR, layers=1)
    length = lambda **k: steer_language(scope, **PAIR, layers=1, **k)[0].add.norm().item()
    assert length(strength=2.0) == pytest.approx(2 * d.lengths[0].item(), rel=1e-4)
    assert length(strength=0.5, unit="norm") == pytest.approx(0.5 * d.norms[0].item(), rel=1e-4)
    assert length(strength=3.0, unit="absolute") == pytest.approx(3.0, rel=1e-4)
    for seed in range(3):
        control = random_language_direction(scope, **PAIR, layers=1, strength=2.0, seed=seed)[0].add
        assert control.norm().item() == pytest.approx(length(strength=2.0), rel=1e-4)
    assert not torch.equal(control, random_language_direction(scope, **PAIR, layers=1, strength=2.0, seed=0)[0].add)


@pytest.mark.parametrize("wrong", [dict(strength=float("nan")), dict(strength=float("inf")), dict(strength=1e38), dict(layers=7), dict(method="means"), dict(unit="sigma"),
                                   dict(source=[]), dict(target=[]), dict(source="xyz"), dict(source=[[5]]), dict(target=[[]])])
def test_what_cannot_be_meant(wrong):
    with pytest.raises(REFUSED):
        steer_language(Scope(tiny("llama")), **{**PAIR, **wrong})


def test_strengths_that_half_precision_cannot_hold():
    half = Scope(tiny("llama").to(torch.float16))
    with pytest.raises(ScopeError, match="Too strong for float16"):
        steer_language(half, **PAIR, strength=1e5, unit="absolute")
    brain = Scope(tiny("llama").to(torch.bfloat16))
    with pytest.raises(ScopeError, match="Too strong for bfloat16"):
        steer_language(brain, **PAIR, strength=1e25, unit="absolute")
    with brain.edit(*steer_language(brain, **PAIR, strength=1e15, unit="absolute")):
        assert brain.logits(SOURCE[1]).isfinite().all()


def test_parallel_text_lines_up():
    langs = list(UDHR_LANGUAGES)
    odd, even, all_ = (parallel_text(langs, half) for half in ("odd", "even", "all"))
    assert len({len(p) for p in odd.values()}) == len({len(p) for p in even.values()}) == 1
    assert len(odd["eng"]) + len(even["eng"]) == len(all_["eng"]) and all(p.strip() for ps in all_.values() for p in ps)
    assert not set(odd["spa"]) & set(even["spa"])
    for wrong in ((["eng"], "first"), ([], "odd"), ("eng", "odd"), (["xyz"], "odd")):
        with pytest.raises(REFUSED):
            parallel_text(*wrong)


def test_languages_are_told_apart_and_too_little_text_is_no_evidence(monkeypatch):
    langs = tuple(lang for lang in UDHR_LANGUAGES)
    for lang, paragraphs in parallel_text(langs, "even").items():
        right = [next(iter(identify_language(p, ("eng", "rus", "cmn", lang)))) == lang for p in paragraphs]
        assert sum(right) / len(right) > 0.9, lang
    assert identify_language("200,000,000") == {} == identify_language("") == identify_language("la la")
    assert sum(identify_language("a longer text in English").values()) == pytest.approx(1, abs=1e-4)
    assert len(language_strip("", "spa")) == 0 and len(language_strip("one <b>two</b>\nthree", "spa")) == 3
    with pytest.raises(ScopeError, match="No language to identify"):
        identify_language("a longer text in English", ("eng", "xyz"))
    _every_language.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ScopeError, match="not installed"):
        identify_language("a longer text in English", ("eng", "fin"))


def test_the_score_by_hand():
    yes, no = "El mar es muy grande y azul", "The sea is large and blue"
    assert harmonic_mean(1, 1) == 1 and harmonic_mean(0.3, 0) == 0 and harmonic_mean(0.5, 1) == pytest.approx(2 / 3)
    score = clas_score([yes, no, no, yes], "spa", [1.0, 1.0, 1.0, 0.5])
    assert (score.lfs, score.relevance, score.n) == (0.5, 0.75, 4) and score.hm == pytest.approx(0.6) and score.hm_of_answers == 0.25
    assert clas_score([no], "spa", [1.0]).hm == 0 and clas_score([yes], "spa", [0.2]).relevance == 0 and clas_score([""], "spa", [0.5]).lfs == 0
    assert clas_score([yes], "spa", [0.5], chance=0.0).relevance == 0.5
    assert clas_score(["la de la de la de la de"], "spa", [1.0]).distinct2 < 0.5 < score.distinct2
    for wrong in (([], []), ([yes], []), ([yes], [2.0]), ([yes], [float("nan")])):
        with pytest.raises(ScopeError, match="A score needs"):
            clas_score(wrong[0], "spa", wrong[1])
    assert len(open_questions(5)) == 5
    with pytest.raises(ScopeError, match="open questions"):
        open_questions(0)


@pytest.mark.model
def test_on_the_real_model():
    from tokenscope import load
    scope = load()
    before, after = ["How do birds fly?", "Tell me about bread."], ["They move their wings.", ""]
    nll = continuation_nll(scope, before, after)
    assert nll[1].isnan() and torch.allclose(nll[:1], continuation_nll(scope, before[:1], after[:1]), rtol=1e-3)
    assert own_question(scope, before, ["They move their wings.", "Bread is made of flour."]).tolist() == [1, 1]
    assert own_question(scope, before, ["", ""]).tolist() == [0, 0]
    even = {lang: ps[:3] for lang, ps in parallel_text(["eng", "spa"], "even").items()}
    none = parallel_gain(scope, [], even["eng"], even["spa"])
    assert none.gain.tolist() == [0, 0, 0] and (none.margin == none.margin_plain).all()
    edits = steer_language(scope)
    table = clas_bench(scope, {"plain": [], "steered": edits}, "spa", open_questions(4), max_new_tokens=12)
    assert table.lfs["plain"] == 0 and table.lfs["steered"] >= 0.5
    with scope.edit(*edits):
        assert ask(scope, open_questions(2), max_new_tokens=6) == [ask(scope, [q], max_new_tokens=6)[0] for q in open_questions(2)]
    for wrong in (lambda: own_question(scope, before[:1], [""]), lambda: own_question(scope, before, [""]), lambda: parallel_gain(scope, [], even["eng"], even["spa"][:2])):
        with pytest.raises(ScopeError):
            wrong()
