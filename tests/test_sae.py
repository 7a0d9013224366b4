"Sparse autoencoders: what does not fit, what is killed, files of others, inputs of every kind."
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from architectures import VOCAB, tiny
from tokenscope.corpus.corpus import run_corpus
from tokenscope.text.names import ScopeError
from tokenscope.measure.sae import SparseAutoencoder, default_sae, load_sae, save_sae
from tokenscope.measure.sae_training import SaeRecipe, _batches, fit_sae
from tokenscope.core.scope import Scope

REFUSED = (ScopeError, TypeError)  # with shapes checked, jaxtyping is first
draw = torch.Generator().manual_seed(0)
STATES = torch.randn(700, 12, generator=draw) * torch.rand(700, 1, generator=draw).add(0.5) + torch.randn(12, generator=draw)
ROWS = [torch.randint(3, VOCAB - 1, (n,), generator=draw).tolist() for n in (7, 5, 9, 3, 12)]


def random_sae(inputs="scale", activation="topk", n=20, width=12, **more):
    W = torch.nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(1)), dim=-1)
    return SparseAutoencoder(W.T.clone(), torch.zeros(n), W, torch.zeros(width), activation, 4, torch.full((n,), 0.2), inputs, torch.ones(width), **more)


@pytest.mark.parametrize("inputs", ["scale", "unit", "layer_norm", "none"])
def test_states_come_back_at_their_own_size(inputs):
    sae = random_sae(inputs) if inputs == "scale" else replace(random_sae(inputs), centre=0.0)
    x, size, origin = sae.normalised(STATES)
    torch.testing.assert_close(origin + size * x, STATES, rtol=1e-3, atol=1e-3)
    z = sae.encode(STATES)
    torch.testing.assert_close(sae.decode(z, STATES), origin + size * sae.decode(z))
    assert z.min() >= 0 and ((z > 0).sum(-1) <= 4).all()
    if inputs in ("unit", "layer_norm"):  # the code does not know how long a state was
        torch.testing.assert_close(sae.encode(3 * STATES), z, rtol=1e-3, atol=1e-3)


def test_adding_to_a_state_keeps_what_the_features_cannot_say():
    sae = random_sae()
    z, size = sae.encode(STATES), sae.normalised(STATES)[1]
    dz = torch.zeros_like(z)
    dz[:, 3] = 1.0
    error = STATES - sae.reconstruct(STATES)
    moved = STATES + size * (dz @ sae.W_dec)
    torch.testing.assert_close(moved - sae.decode(z + dz, STATES), error, rtol=1e-3, atol=1e-3)
    assert error.norm(dim=-1).min() > 0.1  # and there was something to keep


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_holds_everything(tmp_path, activation, dtype):
    sae = random_sae(activation=activation, site="mlp_out", layer=2, model="some", meta=dict(data="x"))
    again = load_sae(save_sae(sae, tmp_path / "a.safetensors", dtype=dtype))
    assert [getattr(again, f) for f in ("activation", "k", "inputs", "site", "layer", "model", "meta")] == [activation, 4, "scale", "mlp_out", 2, "some", {"data": "x"}]
    torch.testing.assert_close(again.W_dec, sae.W_dec, rtol=0, atol=0 if dtype == torch.float32 else 1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not a file", None])
def test_files_that_are_none_of_ours(tmp_path, content):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScopeError, match="Not a file of an autoencoder"):
        load_sae(path)
    save_file({"W_dec": torch.ones(2, 2)}, path, metadata={"tokenscope_sae": json.dumps({"format": 1, "version": "0", "k": 1})})
    with pytest.raises(REFUSED):
        load_sae(path)


def test_parts_that_do_not_fit():
    sae = random_sae()
    for wrong in (dict(k=0), dict(k=21), dict(b_dec=torch.zeros(3)), dict(centre=torch.zeros(3)), dict(activation="gelu"), dict(inputs="l2"), dict(threshold=torch.ones(3)),
                  dict(W_enc=sae.W_enc * float("nan")), dict(site="nowhere")):
        with pytest.raises(REFUSED):
            replace(sae, **wrong)
    for h in (torch.ones(2, 11), torch.ones(12, 2)):
        with pytest.raises(ScopeError, match="another width"):
            sae.encode(h)


def test_models_that_do_not_fit():
    scope = Scope(tiny("llama"))
    fits = random_sae(width=32, layer=2)
    assert fits.check(scope) is fits
    for wrong in (random_sae(width=12), replace(fits, layer=3), default_sae()):
        with pytest.raises(ScopeError, match="does not fit this model"):
            wrong.check(scope)
    scope.model.config._name_or_path = "org/Model-A"
    assert replace(fits, model="model-a").check(scope)
    with pytest.raises(ScopeError, match="replace"):
        replace(fits, model="model-b").check(scope)


@pytest.mark.parametrize("recipe", [dict(k=3), dict(l1=0.1), dict(l1=0.1, tied=True, inputs="unit")], ids=str)
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, recipe):
    whole = fit_sae(STATES, 30, steps=40, batch_size=64, seed=1, **recipe)
    plain = SaeRecipe.rate

    def dies(self, step):
        if step == 27:
            raise KeyboardInterrupt
        return plain(self, step)

    monkeypatch.setattr(SaeRecipe, "rate", dies)
    with pytest.raises(KeyboardInterrupt):
        fit_sae(STATES, 30, steps=40, batch_size=64, seed=1, folder=tmp_path / "run", every=10, **recipe)
    monkeypatch.setattr(SaeRecipe, "rate", plain)
    for _ in range(2):  # the second time the finished run is only read
        resumed = fit_sae(STATES, 30, steps=40, batch_size=64, seed=1, folder=tmp_path / "run", every=10, **recipe)
        assert all(torch.equal(getattr(whole, name), getattr(resumed, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    assert torch.allclose(whole.W_dec.norm(dim=-1), torch.ones(30)) and (not recipe.get("tied") or torch.equal(whole.W_enc, whole.W_dec.T))
    with pytest.raises(ScopeError, match="another job"):
        fit_sae(STATES + 1, 30, steps=40, batch_size=64, seed=1, folder=tmp_path / "run", **recipe)


def test_fitting_explains_more_and_seeds_matter():
    made = [fit_sae(STATES, 30, k=4, steps=s, batch_size=256, seed=seed) for s, seed in ((1, 0), (300, 0), (300, 0), (300, 1))]
    good = [m.report(STATES).explained for m in made]
    assert good[1] > good[0] + 0.2 and torch.equal(made[1].W_dec, made[2].W_dec) and not torch.equal(made[1].W_dec, made[3].W_dec)
    assert made[1].report(STATES).l0 <= 4 and made[1].report(STATES[:1]).n_tokens == 1


def test_sinks_are_left_out():
    sinks = torch.cat([STATES, 1e4 * torch.ones(5, 12)])
    assert fit_sae(sinks, 8, k=2, steps=2).meta["n_tokens"] == len(STATES)
    assert fit_sae(sinks, 8, k=2, steps=2, drop=1e6).meta["n_tokens"] == len(sinks)


@pytest.mark.parametrize("states", [torch.zeros(0, 4), torch.ones(1, 4), torch.zeros(9, 4), torch.full((9, 4), float("nan")), torch.ones(3, 3, 3), torch.ones(9, 4, dtype=torch.long), [[1.0]]], ids=lambda s: str(getattr(s, "shape", s)))
def test_states_that_cannot_be_fitted(states):
    with pytest.raises(REFUSED):
        fit_sae(states, 4, k=1, steps=1)


@pytest.mark.parametrize("recipe", [{}, dict(k=1, l1=0.1), dict(k=0), dict(k=9), dict(l1=-1.0), dict(k=1, steps=0), dict(k=1, lr=0.0), dict(k=1, inputs="none"), dict(k=1, drop=0.0), dict(l1=float("nan"))], ids=str)
def test_recipes_that_cannot_be_meant(recipe):
    with pytest.raises(ScopeError):
        fit_sae(STATES, 8, **recipe)


def test_the_order_of_states_can_be_entered_anywhere():
    parts = [torch.arange(float(n))[:, None] + 100 * i for i, n in enumerate((5, 1, 9, 4, 0, 7))]
    take = lambda skip, n=12: [b[:, 0].tolist() for _, b in zip(range(n), _batches([len(p) for p in parts], lambda i: parts[i], 3, 8, 5, skip))]
    assert all(take(skip)[:4] == take(0, 20)[skip:skip + 4] for skip in (1, 5, 8, 14))
    assert len({x for b in take(0, 6) for x in b}) == 18  # nothing twice in an epoch


def test_a_corpus_is_fitted_from_its_shards(tmp_path):
    from tokenscope import load
    scope = load()
    texts = [f"The number {i} is here, and it is written down." for i in range(40)]
    corpus = run_corpus(scope, texts, tmp_path / "c", scores=[], sites=["resid_post"], layers=[1, 2], positions=slice(1, None), dtype="float32", shard_characters=600)
    made = fit_sae(corpus, 16, k=2, steps=5, layer=2, buffer=100)
    whole = torch.cat([s[:, 1] for s in corpus.states("resid_post")])
    assert made.layer == 2 and made.meta["n_tokens"] == fit_sae(whole, 16, k=2, steps=1).meta["n_tokens"]
    torch.testing.assert_close(made.centre, whole[whole.norm(dim=-1) <= 3 * whole.norm(dim=-1).median()].mean(0), rtol=1e-3, atol=1e-3)
    with pytest.raises(ScopeError, match="layer="):
        fit_sae(corpus, 16, k=2, steps=5)
