"Token graphs and the poolers on them; the states and the picture below them."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from architectures import tiny_reader
from corpus_fixtures import small  # noqa: F401
from tokenscope.text.names import ScopeError
from tokenscope.show.links import token_arcs
from tokenscope.core.states import token_states
from tokenscope.lenses.glot import CONVS, AttentionPool, GATLayer, PlainPool, TokenGraphPool, cosine_token_graph, glot, random_graph_glot, random_token_graph, train_pooler

D, LENGTHS = 12, (7, 5, 1)
TEXTS = ["The cat sat on the mat.", "A dog", "nobody <b>saw</b> it 👩‍👩‍👧"]


def some_states(seed=0, lengths=LENGTHS):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), D, generator=torch.Generator().manual_seed(seed)) * mask[..., None], mask


def pooler(conv="gat", seed=0, **more):
    torch.manual_seed(seed)
    return TokenGraphPool(D, **{"hidden": 6, "layers": 2, "conv": conv, "tau": 0.1, "readout": 8, **more})


ALL = [*(lambda conv=conv: pooler(conv) for conv in CONVS), lambda: AttentionPool(D, 8), *(lambda kind=kind: PlainPool(D, kind) for kind in ("mean", "max", "last", "first"))]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 8), min_size=1, max_size=4), st.floats(-1, 1), st.floats(0, 0.5), st.floats(0.1, 100))
def test_graph(seed, lengths, tau, more, scale):
    X, mask = some_states(seed, lengths)
    edges = cosine_token_graph(X, mask, tau)
    assert torch.equal(edges, edges.mT) and not (edges & ~(mask[:, :, None] & mask[:, None])).any()
    assert not (cosine_token_graph(X, mask, tau + more) & ~edges).any()  # fewer edges, none of them new
    assert (edges ^ cosine_token_graph(scale * X, mask, tau)).sum() <= 2  # a cosine may sit on the threshold
    dealt = random_token_graph(edges, mask, seed)
    assert torch.equal(dealt, dealt.mT) and torch.equal(dealt.sum((1, 2)), edges.sum((1, 2))) and torch.equal(dealt & torch.eye(len(X[0]), dtype=torch.bool), edges & torch.eye(len(X[0]), dtype=torch.bool))
    assert not (dealt & ~(mask[:, :, None] & mask[:, None])).any()


def test_graph_without_and_with_all_edges():
    X, mask = some_states()
    X[0, 3] = X[0, 1]  # even identical tokens are not joined at tau 1
    assert not cosine_token_graph(X, mask, 1.0).any() and cosine_token_graph(X, mask, -1.1).sum() == sum(n * n for n in LENGTHS)
    assert cosine_token_graph(X, mask, 0.999)[0, 3, 1]
    shifted = cosine_token_graph(X + 100, mask, 0.3)
    assert shifted.sum() == sum(n * n for n in LENGTHS) and torch.equal(cosine_token_graph(X + 100, mask, 0.3, mean=torch.tensor(100.0)), cosine_token_graph(X, mask, 0.3))


@pytest.mark.parametrize("make", ALL)
def test_order_padding_and_batch_do_not_matter(make):
    (X, mask), pool = some_states(), make()
    z = pool(X, mask)
    assert z.shape == (3, pool.width) and z.isfinite().all()
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(pool(X[i:i + 1, :n], mask[i:i + 1, :n])[0], z[i])
    torch.testing.assert_close(pool(torch.cat([X, 9 * torch.ones(3, 2, D)], 1), torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], 1)), z)
    order = torch.tensor([2, 0, 1, 6, 5, 4, 3])
    if getattr(pool, "kind", "") not in ("last", "first"):
        torch.testing.assert_close(pool(X[:1, order], mask[:1, order]), z[:1])


@pytest.mark.parametrize("conv", CONVS)
def test_no_graph_means_each_token_alone(conv):
    (X, mask), pool = some_states(), pooler(conv)
    refine = lambda tau: torch.autograd.functional.jacobian(lambda x: pool.refine(x[None], mask[:1], cosine_token_graph(x[None], mask[:1], tau))[0].sum(-1), X[0])
    apart = refine(1.0)
    assert all(not apart[i, j].any() for i in range(7) for j in range(7) if i != j)
    assert refine(-1.1)[0, 1].any()


def test_complete_graph_and_cliques():
    X, mask = some_states()
    rows = CONVS["gcn"](D, 6)(X[:1], cosine_token_graph(X[:1], mask[:1], -1.1))
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    X[0, 4] = X[0, 2]
    for conv in CONVS:
        U = pooler(conv).refine(X, mask, cosine_token_graph(X, mask, 0.3))
        torch.testing.assert_close(U[0, 4], U[0, 2])


def test_without_layers_it_is_attention_pooling():
    X, mask = some_states()
    pool = TokenGraphPool(D, layers=0, readout=8)
    score = pool.scorer(X)[..., 0].masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(pool(X, mask), (score[..., None] * X).sum(1))
    with torch.no_grad():
        for p in pool.scorer.parameters():
            p.zero_()
    torch.testing.assert_close(pool(X, mask), PlainPool(D)(X, mask))
    with torch.no_grad():  # a scorer that shouts for one direction gives the token that has it
        pool.scorer[0].weight[0, 0], pool.scorer[2].weight[0, 0] = 1e3, 1e3
    assert torch.allclose(pool(X[:1], mask[:1])[0], X[0, X[0, :, 0].argmax()]) or (X[0, :, 0] > 0).sum() > 1


@pytest.mark.parametrize("p, K, readout", [(6, 2, 8), (5, 4, None)])
def test_number_of_parameters(p, K, readout):
    pool = TokenGraphPool(D, hidden=p, layers=K, readout=readout)
    width, r = D + K * p, readout or 128
    assert pool.width == width and sum(q.numel() for q in pool.convs.parameters()) == p * D + (K - 1) * p * p + 5 * p * K
    assert sum(q.numel() for q in pool.scorer.parameters()) == r * width + r + r + 1
    assert TokenGraphPool(D, hidden=p, layers=K, jumping="max").width == p


def test_gat_is_attention_over_the_neighbours():
    (X, mask), layer = some_states(), GATLayer(D, 5)
    edges = cosine_token_graph(X, mask, 0.1)
    out, W = layer(X, edges), X[0] @ layer.weight.T
    for i in range(7):
        near = [j for j in range(7) if edges[0, i, j] or i == j]
        e = torch.stack([torch.nn.functional.leaky_relu(layer.target[0] @ W[i] + layer.source[0] @ W[j] + layer.edge[0] @ layer.edge_weight[0], 0.2) for j in near])
        torch.testing.assert_close(out[0, i], e.softmax(0) @ W[near] + layer.bias)


def test_training_learns_and_is_repeatable():
    X = torch.randn(80, 5, D, generator=torch.Generator().manual_seed(0))
    mask, y = torch.ones(80, 5, dtype=torch.bool), torch.arange(80) % 2
    X[:, 2, 0] += 6.0 * y
    runs = [train_pooler(pooler(), X[:60], mask[:60], y[:60], lr=1e-2, epochs=30, seed=s) for s in (0, 0, 1)]
    assert runs[0].accuracy(X[60:], mask[60:], y[60:]) > 0.8 and runs[0].losses == runs[1].losses != runs[2].losses and len(runs[0].losses) == 60
    fresh = pooler()
    state = torch.get_rng_state()
    train_pooler(fresh, X, mask, y, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)  # the surrounding random state is left alone
    edges = torch.zeros(80, 5, 5, dtype=torch.bool)
    torch.testing.assert_close(runs[0].logits(X, mask, edges), runs[0].head(runs[0].pool(X, mask, edges)).detach())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_states_are_those_of_the_model(family):
    other = tiny_reader(family)
    read = token_states(other, TEXTS, layers=None, batch_tokens=8)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([other.tokenizer(text)["input_ids"]])
        hidden = other.model(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
        n = ids.shape[1]
        torch.testing.assert_close(read.states[i, -1, :n], hidden[-1][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(read.states[i, 0, :n], hidden[1][0], rtol=1e-3, atol=1e-4)
        assert read.mask[i].sum() == n and not read.states[i, :, n:].any() and len(read.tokens[i]) == n
    other.model.requires_grad_(True)
    read = token_states(other, TEXTS)
    assert read.layers == [2] and not read.states.requires_grad
    train_pooler(TokenGraphPool(32, hidden=4, readout=8), read.states[:, 0], read.mask, torch.tensor([0, 1, 0]), epochs=1)
    assert all(p.grad is None for p in other.model.parameters())


def test_states_of_an_encoder(small):
    from transformers import BertConfig, BertModel
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(vocab_size=small.vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=40)).eval()
    read = token_states((encoder, small.tokenizer), TEXTS)
    ids = torch.tensor([small.tokenizer(TEXTS[1])["input_ids"]])
    with torch.no_grad():
        alone = encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(read.states[1, 0, :ids.shape[1]], alone[0], rtol=1e-4, atol=1e-5)
    assert glot((encoder, small.tokenizer), TEXTS[0], layers=[0, 1], tau=0.5).weights.sum(1).allclose(torch.ones(2))
    with pytest.raises(ScopeError, match="too long"):
        token_states((encoder, small.tokenizer), "the cat " * 30)


def test_reading(small):
    made = glot(small, TEXTS[2], tau=0.2)
    page = made._repr_html_()
    assert "<b>" not in page and "&lt;" in page and page.count("<svg") == 3 and len(made.to_df()) == 3 * len(made.tokens)
    dealt = random_graph_glot(small, TEXTS[2], tau=0.2)
    assert made.density() == dealt.density() and not torch.equal(made.edges, dealt.edges) and torch.equal(dealt.edges, random_graph_glot(small, TEXTS[2], tau=0.2).edges)
    assert glot(small, "Hi", layers=-1).weights.tolist() == [[1.0]] and "<svg" in glot(small, "Hi", layers=-1)._repr_html_() and glot(small, "Hi", centred=True).density()[0] == 0
    wide = glot(small, "the cat sat " * 18, tau=-1.1)
    assert "150 strongest drawn" in wide._repr_html_() and len(wide._repr_html_()) < 80_000


X, M = some_states()
Y = torch.tensor([0, 1, 0])


@pytest.mark.parametrize("wrong, message", [
    (lambda s: glot(s, ["a", "b"]), "glot takes one text"), (lambda s: glot(s, ""), "Nothing to read"), (lambda s: glot(s, "Hi there", layers=9), "No such layer"), (lambda s: glot(s, "Hi", positions=7), "No such position"),
    (lambda s: glot(s, "the cat " * 40), "too long"), (lambda s: glot(s, "Hi", pooler=pooler()), "The states do not fit the pooler"), (lambda s: token_states(s.model, "Hi"), "No model to take states from"),
    (lambda s: token_states(s, []), "Nothing to read"), (lambda s: token_states(s, ["Hi", ""]), "Nothing to read"), (lambda s: cosine_token_graph(X, M[:, :3]), "The mask does not fit the states"),
    (lambda s: cosine_token_graph(X * torch.nan, M), "The token states are not finite"), (lambda s: pooler()(X[..., :5], M), "The states do not fit the pooler"),
    (lambda s: PlainPool(D)(X, torch.zeros_like(M)), "A text without tokens"), (lambda s: PlainPool(D, "sum"), "Unknown pooling"), (lambda s: pooler("sage"), "Not a token graph pooler"),
    (lambda s: pooler(layers=0, jumping="max"), "Not a token graph pooler"), (lambda s: train_pooler(pooler(), X, M, Y[:2]), "Nothing to learn from"), (lambda s: train_pooler(pooler(), X, M, 0 * Y), "Nothing to learn from"),
    (lambda s: train_pooler(PlainPool(D), X * torch.inf, M, Y), "The token states are not finite"), (lambda s: token_arcs(["a", "b"], [[1.0]], [1, 1]), "Links do not fit the tokens")])
def test_bad_input(small, wrong, message):
    with pytest.raises(ScopeError, match=message):
        wrong(small)
