"Encodings, classification and masks, on small tokenizers made here and on bad input."
import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from architectures import tiny
from tokenscope.text.encodings import byte_vocabulary, canonical_encoding, encodings, piece_bytes
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope
from tokenscope.tokenizers.tokenizer_betrayal import OUTCOMES, PHANTOM_TYPES, PhantomMask, RandomBan, ReplacementProbe, classify_edit, random_ban_probe

PIECES = ["Ġ", "a", "b", "c", "ab", "bc", "abc", "Ġa", "Ġab", "Ġabc", "s", "Ġabcs", "A", "B", "AB", "Ċ", "."]
MERGES = [("a", "b"), ("b", "c"), ("ab", "c"), ("Ġ", "a"), ("Ġ", "ab"), ("Ġ", "abc"), ("Ġabc", "s"), ("A", "B")]


@pytest.fixture(scope="module")
def tok():
    inner = Tokenizer(models.BPE({p: i for i, p in enumerate(PIECES)}, MERGES))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def by_hand(tokenizer, word):
    "All encodings, by trying every way to cut the word."
    table, n, found = byte_vocabulary(tokenizer), len(word), set()
    for cuts in itertools.product((0, 1), repeat=n - 1):
        bounds = [0, *[k + 1 for k, c in enumerate(cuts) if c], n]
        found |= set(itertools.product(*[table.get(word[a:b].encode(), ()) for a, b in zip(bounds, bounds[1:])]))
    return found


@settings(deadline=None, max_examples=60)
@given(word=st.text(alphabet=" abcsAB", min_size=1, max_size=8).filter(lambda w: not w.startswith("  ") and "  " not in w.strip()))
def test_encodings_are_all_and_only_those_with_this_surface(word):
    tokenizer = TOK()
    try:
        canonical = canonical_encoding(tokenizer, word)
    except ScopeError:
        return
    if b"".join(piece_bytes(tokenizer, canonical)) != word.encode():
        return  # a piece is missing from this small vocabulary
    found = encodings(tokenizer, word, max_pieces=99)
    assert {tuple(e) for e in found} == by_hand(tokenizer, word) and len(found) == len({tuple(e) for e in found})
    assert found[0] == canonical and all(b"".join(piece_bytes(tokenizer, e)) == word.encode() for e in found)


_made = []


def TOK():
    "One tokenizer for all examples (hypothesis does not mix with fixtures)."
    if not _made:
        inner = Tokenizer(models.BPE({p: i for i, p in enumerate(PIECES)}, MERGES))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        _made.append(PreTrainedTokenizerFast(tokenizer_object=inner))
    return _made[0]


def ids(tok, *pieces):
    return [PIECES.index(p) for p in pieces]


@pytest.mark.parametrize("source, output, outcome, kind", [
    (["Ġabc"], ["Ġabc"], "unchanged", None), (["Ġabc"], ["ab"], "replaced", None), (["Ġabc"], [], "unaligned", None),
    (["Ġabc"], ["abc"], "phantom", 0), (["Ġabc"], ["Ġ", "abc"], "phantom", 1), (["Ġabc"], ["Ċ", "abc"], "phantom", 2), (["Ġabc"], ["Ġa", "bc"], "phantom", 3),
    (["AB"], ["A", "B"], "phantom", 6), (["Ġabcs"], ["Ġabc", "s"], "phantom", 7)])
def test_classification(tok, source, output, outcome, kind):
    assert classify_edit(ids(tok, *source), ids(tok, *output), tok) == (outcome, None if kind is None else PHANTOM_TYPES[kind])


def test_the_mask_closes_every_way_but_the_allowed_one(tok):
    allowed = ids(tok, "abc")
    mask, whole = (PhantomMask(tok, [{"abc": allowed}], 0, mode=m) for m in ("noncanonical", "all"))
    completes = lambda before: [PIECES[i] for i in mask.banned(ids(tok, *before), mask.words[0])]
    assert completes([]) == ["Ġabc"] and completes(["ab"]) == ["c", "Ġabc"] and completes(["."]) == ["Ġabc"] and completes(["Ġa"]) == ["bc", "Ġabc"]
    assert [PIECES[i] for i in whole.banned([], whole.words[0])] == ["abc", "Ġabc"]
    reachable = [e for e in encodings(tok, "abc", max_pieces=9) if all(e[k] not in mask.banned(e[:k], mask.words[0]) for k in range(len(e)))]
    assert reachable == [allowed]


def test_banned_ids_are_gone_and_the_others_keep_their_ratios(tok):
    scores = torch.randn(2, len(PIECES), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([ids(tok, ".", "ab"), ids(tok, ".", "s")])
    out = PhantomMask(tok, [{"abc": ids(tok, "abc")}], 0)(rows, scores.clone())
    gone = out.isinf()
    assert gone[0].sum() == 2 and gone[1].sum() == 1
    torch.testing.assert_close(out.softmax(-1)[~gone][:3] / out.softmax(-1)[~gone][0], scores.softmax(-1)[~gone][:3] / scores.softmax(-1)[~gone][0])
    assert torch.equal(PhantomMask(tok, [], 0)(rows, scores.clone()), scores)
    rand = RandomBan(tok, [{"abc": ids(tok, "abc")}], 0, seed=1, spread=3)(rows, scores.clone())
    assert 1 <= rand[0].isinf().sum() <= 2


def test_bad_input(tok):
    scope = Scope(tiny("llama"), tok)
    for wrong in (lambda: encodings(tok, ""), lambda: encodings(tok, None), lambda: PhantomMask(tok, [], 0, mode="x"), lambda: ReplacementProbe(scope, mask="x"),
                  lambda: ReplacementProbe(scope, fraction=0), lambda: ReplacementProbe(scope).run([]), lambda: ReplacementProbe(scope).run(["abc"], temperature=float("nan")),
                  lambda: ReplacementProbe(scope).run([". ."])):
        with pytest.raises((ScopeError, TypeError)):
            wrong()
    assert random_ban_probe(scope, fraction=0.5).mask == "random"


@pytest.mark.model
def test_the_probe_on_the_real_model():
    from tokenscope import load
    text = "The committee met in Geneva and discussed the report."
    scope = load()
    found = ReplacementProbe(scope, fraction=0.3).run([text, text])
    again = ReplacementProbe(scope, fraction=0.3).run([text, text])
    assert found.cases == again.cases and set(found.counts()) == set(OUTCOMES) and len(found) >= 4
    assert abs(sum(share for share, _, _ in found.rates().values()) - 1) < 1e-9
    closed = ReplacementProbe(scope, fraction=0.3, mask="noncanonical").run([text, text])
    assert closed.counts()["phantom"] == 0
