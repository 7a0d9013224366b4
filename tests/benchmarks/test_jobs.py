"What a corpus job and a search cost. The same work is done by every variant, and that is checked."
import tempfile

import numpy as np
import pytest
import torch

from measure import SMOKE, ratio_table
from tokenscope.data.books import moby_dick
from tokenscope.corpus.corpus import run_corpus
from tokenscope.data.cuts import cuts, token_counts
from tokenscope.data.tokenizer_catalogue import named_tokenizers
from tokenscope.data.declaration import udhr
from tokenscope.measure.neighbours import VectorBank
from tokenscope.core.scope import load
from tokenscope.measure.units import mlp_switches
from tokenscope.lenses.function_tokens import feature_graph


def paragraphs():
    "What the jobs read."
    found = [p for p in moby_dick()[:400:10] if p]
    return [" ".join(p.split()[:50]) for p in found[:8]] if SMOKE else found[:32]


@pytest.fixture(scope="module")
def scope():
    torch.set_num_threads(1)
    return load()


@torch.no_grad()
def test_corpus(scope):
    texts = paragraphs()
    tokenizer = scope.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def plain(batch_size=8):
        found = []
        for k in range(0, len(texts), batch_size):
            batch = tokenizer(texts[k:k + batch_size], padding=True, padding_side="right", return_tensors="pt")
            logp = scope.model(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
            rows = -logp.gather(2, batch.input_ids[:, 1:, None])[..., 0]
            found += [row[:n - 1].numpy() for row, n in zip(rows, batch.attention_mask.sum(1).tolist())]
        return found

    def job():
        with tempfile.TemporaryDirectory() as folder:
            return run_corpus(scope, texts, f"{folder}/job").to_df()

    np.testing.assert_allclose(job().surprisal.dropna(), np.concatenate(plain()), atol=5e-3)
    lengths = [len(tokenizer(t)["input_ids"]) for t in texts]
    ratio_table(f"Surprisal of {sum(lengths):,} tokens, {len(texts)} texts of {min(lengths)} to {max(lengths)}", plain, {"tokenscope": {"corpus job, written to disk": job}},
                {"corpus job, written to disk": 1 / 1.5}, "ratio to a plain batched loop")


@torch.no_grad()
def test_function_tokens(scope):
    "Which hidden units of three layers each token switches on, and its surprisal."
    texts = paragraphs()
    tokenizer, layers = scope.tokenizer, [5, 15, 25]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    switches, units = mlp_switches(scope, texts[:8], layers=layers), []

    def plain(batch_size=8):
        hooks = [scope.model.model.layers[i].mlp.down_proj.register_forward_pre_hook(lambda module, given: units.append(given[0])) for i in layers]
        losses, on = [], []
        for k in range(0, len(texts), batch_size):
            units.clear()
            batch = tokenizer(texts[k:k + batch_size], padding=True, padding_side="right", return_tensors="pt")
            logp = scope.model(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
            rows, above = -logp.gather(2, batch.input_ids[:, 1:, None])[..., 0], torch.stack(units, 2).abs() > switches.thresholds
            for row, which, n in zip(rows, above, batch.attention_mask.sum(1).tolist()):
                losses.append(row[:n - 1].numpy())
                on.append(which[:n].numpy())
        for hook in hooks:
            hook.remove()
        return np.concatenate(losses), np.concatenate(on)

    def job():
        with tempfile.TemporaryDirectory() as folder:
            made = feature_graph(scope, texts, switches, f"{folder}/job", skip=0)
            return made.table.surprisal.dropna().to_numpy(), np.unpackbits(np.concatenate([b.numpy() for b in made.blocks]), axis=-1).astype(bool)

    (losses, on), (ours, ours_on) = plain(), job()
    np.testing.assert_allclose(ours, losses, atol=5e-3)
    assert (on == ours_on).mean() > 0.9999
    ratio_table(f"Hidden units switched on at three layers, and surprisal, of {len(on):,} tokens", plain, {"tokenscope": {"function-token job, written to disk": job}},
                {"function-token job, written to disk": 1 / 1.5}, "ratio to a plain batched loop")


@torch.no_grad()
def test_search():
    faiss = pytest.importorskip("faiss")
    g, n = torch.Generator().manual_seed(0), 250 if SMOKE else 25_000
    rows = torch.nn.functional.normalize(torch.randn(n, 8, 192, generator=g), dim=-1)
    bank = VectorBank(list(range(8)), [rows.half()], torch.zeros(n, 3, dtype=torch.long), [""])
    queries = torch.nn.functional.normalize(torch.randn(32, 192, generator=g), dim=-1)
    index = faiss.IndexFlatIP(192)
    index.add(rows.flatten(0, 1).numpy())
    torch.testing.assert_close(bank.search(queries).cosine, torch.tensor(index.search(queries.numpy(), 5)[0]), atol=1e-3, rtol=0)
    faiss.omp_set_num_threads(1)
    ratio_table(f"32 exact searches among {8 * n:,} vectors", lambda: index.search(queries.numpy(), 5), {"tokenscope": {"half precision, can stay on disk": lambda: bank.search(queries)}},
                unit="ratio to faiss, float32 in memory")


def test_cutting():
    "Counting the tokens of a corpus, and the own time of the aligned view, beside what the tokenizers themselves take."
    names = ["smollm2", "gpt4o"] if not SMOKE else ["smollm2"]
    tokenizers = named_tokenizers(names)
    texts = (moby_dick() * 20)[: (1_000 if SMOKE else 200_000)]
    texts = texts[: next((i for i, n in enumerate(np.cumsum([len(t) for t in texts])) if n > 10_000_000), len(texts))]
    size = sum(map(len, texts)) / 1e6
    plain = lambda: [len(e) for t in tokenizers.values() for e in t.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert sum(plain()) == token_counts(texts, tokenizers).tokens.sum()
    ratio_table(f"Count the tokens of {size:.1f} MB of text with {len(names)} tokenizers", plain, {"tokenscope": {"token_counts": lambda: token_counts(texts, tokenizers)}},
                {"token_counts": 1.1}, "ratio to the Rust tokenizers")
    page = "\n".join(udhr("eng") * 2)[: 1_000 if SMOKE else 10_000]
    shown = named_tokenizers(["smollm2", "gpt2"] if SMOKE else ["smollm2", "gpt2", "gpt4o", "llama3"])
    encode = lambda: [t.backend_tokenizer.encode(page, add_special_tokens=False) for t in shown.values()]
    ratio_table(f"Aligned view of {len(page):,} characters, {len(shown)} tokenizers", encode, {"tokenscope": {"cut, align and draw": lambda: cuts(page, shown)._repr_html_()}}, unit="ratio to encoding")
