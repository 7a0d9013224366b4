"""Runs with fewer tokens, over many families: equal to a run in which nobody sees the dropped tokens, with and without a cache."""
import gc

import pytest
import torch
from architectures import ALL, CLOSED, tiny, tiny_reader
from seeing_models import FAMILIES, tiny_seeing
from test_seeing import ONE, TWO
from transformers import DynamicCache

from tokenscope.core.edit import Edit
from tokenscope.core.keep_mask import KeepMask, keep_top, load_keep, save_keep
from tokenscope.core.scope import Scope
from tokenscope.show.display import TokenScores
from tokenscope.text.names import ScopeError
from tokenscope.text.tokens import Tokens

OPEN = [f for f in ALL if f not in CLOSED]
IDS = [torch.randint(3, 90, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 12)]


def nested(tokens, n_layers, seed=0, first=1):
    "A mask in which more tokens drop out layer by layer; the first and the last stay."
    draw = torch.Generator().manual_seed(seed)
    keep = torch.ones(n_layers, len(tokens), dtype=torch.bool)
    for layer in range(first, n_layers):
        keep[layer:] &= torch.rand(len(tokens), generator=draw) > 0.35
    keep[:, 0] = keep[:, -1] = True
    return KeepMask(tokens, keep)


def numbered(ids):
    return Tokens(list(map(str, ids)), ids=ids)


def new_ids(scope, ids, **settings):
    return scope.generate(ids, return_ids=True, max_new_tokens=8, **settings)[1]


@pytest.fixture(scope="module", params=OPEN)
def scope(request):
    return Scope(tiny(request.param))


def test_equal_to_hidden(scope):
    for ids in IDS:
        keep = nested(numbered(ids), scope.n_layers, len(ids))
        stays = keep.keep[-1]
        plain = scope.logits([ids])
        with scope.edit(*keep.edits()):
            right = scope.logits([ids])
        with scope.kept(keep):
            got = scope.logits([ids])
        assert got[0, ~stays].isnan().all() and bool((~stays).any())
        torch.testing.assert_close(got[0, stays], right[0, stays], rtol=1e-5, atol=2e-6)
        assert not torch.allclose(plain[0, -1], right[0, -1], atol=1e-6)
        assert torch.equal(scope.logits([ids]), plain)  # the hooks are off


def test_generation(scope):
    if scope.model.config.model_type == "llava":
        pytest.skip("this one has no tokenizer to stop with")
    ids = IDS[1]
    keep = nested(numbered(ids), scope.n_layers)
    for when in ("prefill", "cache"):
        with scope.edit(*keep.edits(when)):
            right = new_ids(scope, [ids])
        with scope.kept(keep, when=when):
            assert new_ids(scope, [ids]) == right
            assert when == "cache" or new_ids(scope, [ids], use_cache=False) == right
    with scope.edit(*keep.edits()):
        right = new_ids(scope, [ids], num_beams=3)
    with scope.kept(keep):
        assert new_ids(scope, [ids], num_beams=3) == right


def test_batches(scope):
    keeps = [nested(numbered(ids), scope.n_layers, len(ids)) for ids in IDS]
    for side in ("right", "left"):
        batch = scope.encode(IDS, padding_side=side)
        with scope.kept(keeps):
            both = scope.logits(batch)
        for row, (ids, keep) in enumerate(zip(IDS, keeps)):
            with scope.kept(keep):
                alone = scope.logits([ids])[0]
            real = both[row][batch.attention_mask[row].bool()]
            torch.testing.assert_close(real, alone, rtol=1e-5, atol=2e-6, equal_nan=True)


def test_whole_is_plain(scope):
    ids = IDS[0]
    whole = KeepMask(numbered(ids), torch.ones(scope.n_layers, len(ids), dtype=torch.bool))
    plain = scope.logits([ids])
    with scope.kept(whole):
        assert torch.equal(scope.logits([ids]), plain)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3", "falcon", "phi3"])
def test_renumbered_is_a_shorter_text(family):
    scope = Scope(tiny(family))
    ids = IDS[1]
    keep = torch.ones(scope.n_layers, len(ids), dtype=torch.bool)
    keep[:, 3:6] = False
    mask = KeepMask(numbered(ids), keep)
    short = ids[:3] + ids[6:]
    with scope.kept(mask, renumber=True):
        got, said = scope.logits([ids]), new_ids(scope, [ids])
    torch.testing.assert_close(got[0, keep[0]], scope.logits([short])[0], rtol=1e-5, atol=2e-6)
    assert said == new_ids(scope, [short])


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2"])
def test_positions_that_cannot_be_renumbered(family):
    scope = Scope(tiny(family))
    keep = nested(numbered(IDS[1]), scope.n_layers)
    with pytest.raises(ScopeError, match="cannot be renumbered"), scope.kept(keep, renumber=True):
        scope.logits([IDS[1]])
    assert scope.logits([IDS[1]]).isfinite().all()


def test_merged_states():
    "Two equal tokens at one place: the mean of their states is either of them."
    scope = Scope(tiny("llama"))
    ids = IDS[0]
    keep = torch.ones(scope.n_layers, len(ids), dtype=torch.bool)
    keep[1:, 4] = False
    sources = torch.full((len(ids),), -1)
    sources[4] = 5
    mask = KeepMask(numbered(ids), keep, sources=sources)
    states = scope.read([ids], "resid_post", layers=0)["resid_post"][0, 0]
    mean = (states[4] + states[5]) / 2
    dropped = KeepMask(numbered(ids), keep)
    with scope.edit(Edit("resid_post", 0, set=mean, positions=5), *dropped.edits()):
        right = scope.logits([ids])
    with scope.kept(mask):
        got = scope.logits([ids])
    stays = keep[-1]
    torch.testing.assert_close(got[0, stays], right[0, stays], rtol=1e-5, atol=2e-6)
    twice = Edit("attn_scores", range(1, scope.n_layers), add=torch.log(torch.tensor(2.0)), keys=[5])
    with scope.edit(Edit("resid_post", 0, set=mean, positions=5), *dropped.edits(), twice):
        right = scope.logits([ids])
    with scope.kept(mask, log_sizes=True):
        torch.testing.assert_close(scope.logits([ids])[0, stays], right[0, stays], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures(family):
    scope = Scope(*tiny_seeing(family))
    for chat in (ONE, TWO):
        tokens = scope.encode([chat]).tokens[0]
        keep = nested(tokens, scope.n_layers)
        image = keep_top(scope, TokenScores(tokens, torch.arange(len(tokens)).float()), ratio=0.5, layers=1, span="image")
        assert all(tokens.patches[i] for i in (~image.keep[-1]).nonzero()[:, 0])
        for mask in (keep, image):
            with scope.edit(*mask.edits()):
                right, said = scope.logits([chat]), new_ids(scope, [chat])
            with scope.kept(mask):
                got, mine = scope.logits([chat]), new_ids(scope, [chat])
            stays = mask.keep[-1]
            torch.testing.assert_close(got[0, stays], right[0, stays], rtol=1e-5, atol=2e-6)
            assert mine == said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype):
    scope = Scope(tiny("llama").to(dtype))
    keep = nested(numbered(IDS[1]), scope.n_layers)
    with scope.edit(*keep.edits()):
        right = scope.logits([IDS[1]])
    with scope.kept(keep):
        got = scope.logits([IDS[1]])
    torch.testing.assert_close(got[0, keep.keep[-1]], right[0, keep.keep[-1]], rtol=2e-2, atol=2e-2)


def test_offloaded_eager_and_trained():
    from accelerate import cpu_offload

    keep = nested(numbered(IDS[1]), 3)
    stays = keep.keep[-1]
    plain = Scope(tiny("llama"))
    with plain.kept(keep):
        right = plain.logits([IDS[1]])[0, stays]
    eager = Scope(tiny("llama", attn_implementation="eager"))
    with eager.kept(keep):
        torch.testing.assert_close(eager.logits([IDS[1]])[0, stays], right, rtol=1e-4, atol=1e-5)
    away = Scope(cpu_offload(tiny("llama", False), execution_device=torch.device("cpu")))
    with away.kept(keep):
        torch.testing.assert_close(away.logits([IDS[1]])[0, stays], right, rtol=1e-5, atol=1e-6)
    taught = Scope(tiny("llama", True))
    with taught.kept(keep), torch.enable_grad():
        out = taught.model(torch.tensor([IDS[1]])).logits[0, stays]
        out.sum().backward()
    assert taught.model.model.layers[0].mlp.up_proj.weight.grad.isfinite().all()


def test_more_text_after_the_mask(scope):
    "A mask of the prompt holds for the prompt with an answer behind it."
    ids = IDS[0]
    keep = nested(numbered(ids), scope.n_layers)
    longer = ids + [7, 8, 9]
    with scope.edit(*keep.edits()):
        right = scope.logits([longer])
    with scope.kept(keep):
        got = scope.logits([longer])
    torch.testing.assert_close(got[0, len(ids) :], right[0, len(ids) :], rtol=1e-5, atol=2e-6)


def test_the_cache_is_smaller():
    scope = Scope(tiny("llama"))
    keep = nested(numbered(IDS[1]), scope.n_layers)
    for when in ("prefill", "cache"):
        cache = DynamicCache(config=scope.model.config)
        with scope.kept(keep, when=when), torch.no_grad():
            scope.model(torch.tensor([IDS[1]]), past_key_values=cache)
            assert [layer.keys.shape[2] for layer in cache.layers] == keep.n_kept
            assert cache.get_seq_length() == len(IDS[1])
            with pytest.raises(ScopeError, match="cannot be cut back"):
                cache.crop(-1)


def test_refused():
    scope = Scope(tiny("llama"))
    tokens = numbered(IDS[1])
    keep = nested(tokens, scope.n_layers)
    other = nested(numbered(IDS[0]), scope.n_layers)
    with pytest.raises(ScopeError, match="another text"), scope.kept(other):
        scope.logits([IDS[1]])
    with pytest.raises(ScopeError, match="another text"), scope.kept(other):
        scope.generate([IDS[1]])
    with pytest.raises(ScopeError, match="masks for a batch"), scope.kept([keep, keep]):
        scope.logits([IDS[1]])
    with pytest.raises(ScopeError, match="2 layers for a model of 3"), scope.kept(KeepMask(tokens, keep.keep[:2])):
        pass
    back = keep.keep.clone()
    back[1, 3], back[2, 3] = False, True
    with pytest.raises(ScopeError, match="back in layer 2"), scope.kept(KeepMask(tokens, back)):
        pass
    with scope.kept(KeepMask(tokens, back), when="cache"):
        scope.generate([IDS[1]], max_new_tokens=2)
    with pytest.raises(ScopeError, match="drop out before"), scope.kept(keep):
        scope.read([IDS[1]], "resid_post", layers=2)
    with scope.kept(keep):
        scope.read([IDS[1]], "resid_post", layers=0)
    with pytest.raises(ScopeError, match="drop out already"), scope.kept(keep), scope.kept(keep):
        pass
    with pytest.raises(ScopeError, match="edit is in force"), scope.edit(Edit("resid_post", 0, add=1.0)), scope.kept(keep):
        pass
    cache = DynamicCache(config=scope.model.config)
    scope.model(torch.tensor([IDS[1]]), past_key_values=cache)
    with pytest.raises(ScopeError, match="filled before"), scope.kept(keep):
        scope.model(torch.tensor([[5]]), past_key_values=cache)
    with pytest.raises(ScopeError, match="StaticCache"), scope.kept(keep):
        scope.generate([IDS[1]], max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ScopeError, match="alibi"):
        bloom = Scope(tiny("bloom"))
        with bloom.kept(nested(tokens, bloom.n_layers)):
            bloom.logits([IDS[1]])
    gone = keep.keep.clone()
    gone[2, -1] = False
    with pytest.raises(ScopeError, match="last token"):
        KeepMask(tokens, gone)
    with pytest.raises(ScopeError, match="for 12 tokens"):
        KeepMask(tokens, keep.keep[:, :5])
    with pytest.raises(ScopeError, match="not there"):
        KeepMask(tokens, keep.keep, sources=torch.where(keep.keep[-1], -1, int((~keep.keep[-1]).nonzero()[0])))
    assert scope.logits([IDS[1]]).isfinite().all()
    gc.collect()


def test_choosing():
    scope = Scope(tiny("llama"))
    tokens = numbered(IDS[1])
    scores = TokenScores(tokens, [3.0, 1, 1, 2, 5, 5, 0, 0, 9, 1, 1, 0])
    keep = keep_top(scope, scores, ratio=(0.5, 0.2), layers=(1, 2))
    assert keep.n_kept == [12, 7, 4] and keep.keep[0].all() and keep.first_layer == 1
    assert keep.keep[2].nonzero()[:, 0].tolist() == [0, 4, 8, 11]  # of equals the first
    for ratio, n in ((0.0, 2), (1.0, 12)):
        assert keep_top(scope, scores, ratio=ratio).n_kept[-1] == n
    everything = keep_top(scope, scores, ratio=0.0, span="all")
    assert everything.n_kept[-1] == 1
    for bad in (dict(ratio=1.5), dict(ratio=(0.5, 0.2)), dict(layers=7), dict(span="image"), dict(span=[40])):
        with pytest.raises(ScopeError):
            keep_top(scope, scores, **bad)
    with pytest.raises(ScopeError, match="NaN"):
        keep_top(scope, TokenScores(tokens, [float("nan")] * 12))


def test_files_and_joins(tmp_path):
    scope = tiny_reader("llama")
    tokens = scope.encode("One <script>two</script> three four five.").tokens[0]
    a, b = (nested(tokens, 3, seed) for seed in (1, 2))
    both = a & b
    assert torch.equal(both.keep, a.keep & b.keep) and both.budget <= min(a.budget, b.budget)
    again = load_keep(save_keep(both, tmp_path / "m.safetensors"))
    assert torch.equal(again.keep, both.keep) and again.tokens.ids == tokens.ids and again.name == both.name
    assert "<script>" not in both._repr_html_() and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(ScopeError, match="Not a mask's file"):
        load_keep(tmp_path / "bad")
    with pytest.raises(ScopeError, match="Masks of different texts"):
        a & nested(numbered(IDS[0]), 3)
