"The bank of token vectors and the lens on top of it."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import tiny_reader
from corpus_fixtures import small  # noqa: F401
from tokenscope.text.names import ScopeError
from tokenscope.measure.neighbours import build_bank, choose_contexts, default_bank_layers, layer_match, open_bank
from tokenscope.lenses.latent_lens import LENSES, embedding_lens, latent_lens, output_lens, shuffled_bank_lens, vector_words
from tokenscope.text.tokens import token_names

TEXTS = ["The cat sat on the mat and every human being is born free and equal.", "The cat sat on the chair while the rendering of the thing was slow.", "A dog ran <b>over</b> the hill, and nobody saw it again 👩‍👩‍👧 today."]


@pytest.fixture(scope="module")
def bank(small):
    return build_bank(small, TEXTS, layers=[0, 1, 2])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=14), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 4), st.one_of(st.none(), st.integers(0, 3)))
def test_contexts_are_capped_and_prefixes_stored_once(rows, most, min_pos, seed):
    kept = choose_contexts(rows, most, min_pos, seed=seed)
    chosen = [(t, p) for t, ps in enumerate(kept) for p in ps]
    prefixes = [tuple(rows[t][:p + 1]) for t, p in chosen]
    assert len(set(prefixes)) == len(prefixes) and all(p >= min_pos for _, p in chosen)
    every = {tuple(r[:p + 1]) for r in rows for p in range(min_pos, len(r))}
    for token in range(6):
        there = sum(p[-1] == token for p in prefixes)
        assert there == min(most, sum(p[-1] == token for p in every))


def test_bank_rows_are_the_states(small, bank):
    for r in (0, 7, len(bank.places) - 1):
        text, position, token = bank.places[r].tolist()
        states = small.read(TEXTS[text], "resid_pre", layers=[0, 1, 2], positions=position)["resid_pre"][0, :, 0]
        assert small.tokenizer(TEXTS[text])["input_ids"][position] == token
        torch.testing.assert_close(bank.blocks[0][r].float(), torch.nn.functional.normalize(states, dim=-1), atol=1e-3, rtol=0)
    shared = [tuple(r) for r in bank.places[:, :2].tolist()]
    assert (1, 2) not in shared and (0, 2) in shared  # "The cat sat" begins both


@pytest.mark.parametrize("chunk, k, layers", [(1, 3, None), (7, 5, [1]), (2048, 10_000, [0, 2]), (5, 1, 2)])
def test_search_is_exact(bank, chunk, k, layers):
    queries = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    found = bank.search(queries, k=k, layers=layers, chunk=chunk)
    chosen = bank.layers if layers is None else [layers] if isinstance(layers, int) else layers
    rows = torch.nn.functional.normalize(bank.blocks[0][:, [bank.layers.index(i) for i in chosen]].float(), dim=-1).flatten(0, 1)
    exact = (torch.nn.functional.normalize(queries, dim=-1) @ rows.T).topk(min(k, len(rows)))
    torch.testing.assert_close(found.cosine, exact.values)
    assert (found.cosine.diff(dim=1) <= 1e-6).all() and set(found.layer.flatten().tolist()) <= set(chosen)


def test_faiss_finds_the_same(bank):
    faiss = pytest.importorskip("faiss")
    rows = torch.nn.functional.normalize(bank.blocks[0].float(), dim=-1).flatten(0, 1)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.numpy())
    queries = torch.nn.functional.normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    cosine, _ = index.search(queries.numpy(), 5)
    torch.testing.assert_close(bank.search(queries).cosine, torch.tensor(cosine), atol=1e-5, rtol=0)


def test_on_disk_and_in_memory_are_the_same(small, bank, tmp_path):
    there = build_bank(small, TEXTS, tmp_path / "bank", layers=[0, 1, 2])
    assert torch.equal(there.places, bank.places) and torch.equal(torch.cat(there.blocks), bank.blocks[0])
    assert torch.equal(open_bank(small, TEXTS, tmp_path / "bank").places, bank.places)
    with pytest.raises(ScopeError, match="The folder holds another job"):
        build_bank(small, TEXTS, tmp_path / "bank", layers=[1])
    with pytest.raises(ScopeError, match="This bank was built from other texts"):
        open_bank(small, TEXTS[:1], tmp_path / "bank")


def test_words_come_from_their_place(bank):
    told = [bank.describe(r) for r in range(len(bank.places))]
    assert all(d["text"][slice(*d["span"])] == d["word"] for d in told if d["span"][1] > d["span"][0])
    assert "rendering" in {d["word"] for d in told}


def test_layers_by_default():
    assert default_bank_layers(30) == [1, 2, 4, 8, 16, 24, 28, 29] and default_bank_layers(3) == [1, 2] and default_bank_layers(1) == [0]


def test_layer_match_agrees_with_search(bank):
    queries = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    table = layer_match(bank, queries)
    for layer in bank.layers:
        torch.testing.assert_close(torch.tensor(table[table.layer == layer].cosine.to_numpy()).float(), bank.search(queries, k=1, layers=layer).cosine[:, 0])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("lens", LENSES)
def test_lenses_on_other_architectures(family, lens):
    other = tiny_reader(family)
    hooks = lambda: sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in other.model.modules())
    other.read("a", layers=0)
    before = hooks()
    made = latent_lens(other, TEXTS[0], lens=lens, bank=build_bank(other, TEXTS), k=2)
    assert made.values.shape == (3, len(made.tokens), 2) and made.values.isfinite().all() and hooks() == before
    assert len(made.to_df()) == 3 * len(made.tokens) and made.scores().values.shape == (3, len(made.tokens))


def test_output_lens_is_the_prediction(small):
    last = small.read(TEXTS[0], "resid_post", layers=-1)["resid_post"][0, 0]
    best = small.logits(TEXTS[0])[0].softmax(-1).topk(4)
    made = output_lens(small, last, 4)
    torch.testing.assert_close(made.scores, best.values, rtol=1e-4, atol=1e-6)
    assert made.words == [token_names(small.tokenizer, row) for row in best.indices]


def test_embedding_lens_finds_the_row(small):
    rows = small.structure.embedding.weight[[5, 999, 40_000]]
    made = embedding_lens(small, 3 * rows, 1)
    assert [w[0] for w in made.words] == [small.tokenizer.decode([i]) for i in (5, 999, 40_000)]


def test_the_control_has_the_same_cosines_and_other_words(small, bank):
    real, control = (f(small, TEXTS[0], bank=bank) for f in (latent_lens, shuffled_bank_lens))
    assert torch.equal(real.values, control.values) and real.words != control.words
    assert shuffled_bank_lens(small, TEXTS[0], bank=bank).words == control.words != shuffled_bank_lens(small, TEXTS[0], bank=bank, seed=1).words


def test_html_is_escaped(small, bank):
    page = latent_lens(small, 'x <img src="a" onerror=b>', bank=bank)._repr_html_()
    assert "<img" not in page and "<b>" not in page and 'onerror=b"' not in page


@pytest.mark.parametrize("wrong, message", [
    (lambda s, b: latent_lens(s, "Hi there", bank=b, lens="tuned"), "Unknown lens"), (lambda s, b: latent_lens(s, ["a", "b"], bank=b), "latent_lens takes one text"),
    (lambda s, b: latent_lens(s, "", bank=b), "Nothing to read"), (lambda s, b: latent_lens(s, "Hi", bank=b, layers=9), "9"), (lambda s, b: latent_lens(s, "Hi", bank=b, k=0), "k must"),
    (lambda s, b: vector_words(s, torch.zeros(2, 9), bank=b), "The query does not fit"), (lambda s, b: b.search(torch.full((1, 32), float("nan"))), "The query holds NaN"),
    (lambda s, b: b.search(torch.zeros(1, 32), layers=[7]), "The bank has no layer 7"), (lambda s, b: build_bank(s, []), "Nothing to build a bank from"),
    (lambda s, b: build_bank(s, ["a"]), "Nothing left for the bank"), (lambda s, b: build_bank(s, TEXTS, max_contexts=0), "max_contexts must be"), (lambda s, b: build_bank(s, TEXTS, layers=[7]), "7")])
def test_bad_input(small, bank, wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong(small, bank)


def test_one_token_and_a_zero_vector(small, bank):
    assert latent_lens(small, "Hi", bank=bank, k=1).values.shape[:2] == (3, 1)
    assert vector_words(small, torch.zeros(1, 32), bank=bank).scores.abs().max() == 0
