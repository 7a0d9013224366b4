"What a corpus job, an attribution, a search and an import cost. The same work is done by every variant, and that is checked."
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import torch

from measure import ratios, show
from tokenscope.core.attribution import integrated_gradients
from tokenscope.core.books import moby_dick
from tokenscope.core.corpus import run_corpus
from tokenscope.core.neighbours import VectorBank
from tokenscope.core.scope import load


@pytest.fixture(scope="module")
def scope():
    torch.set_num_threads(1)
    return load()


@torch.no_grad()
def test_corpus(scope):
    texts = [p for p in moby_dick()[:400:20] if p][:16]
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
    found = ratios(plain, {"corpus job, written to disk": job})
    show(f"surprisal of {sum(lengths)} tokens in {len(texts)} texts of {min(lengths)} to {max(lengths)}, ratio to a plain batched loop", {**found, "throughput against the loop": 1 / found["corpus job, written to disk"]})


def test_integrated_gradients(scope):
    attr = pytest.importorskip("captum.attr")
    text, continuation, steps = "The Eiffel Tower stands in Paris, and the Colosseum stands in", " Rome, the capital", 16
    ours = integrated_gradients(scope, text, continuation, baseline="zero", steps=steps, rule="middle", quantity="logit")
    start, more = (scope.tokenizer(t)["input_ids"] for t in (text, continuation))

    def captum(n_targets):
        found = []
        for j in range(n_targets):
            ids = torch.tensor([start + more[:j]])
            x = scope.structure.embedding(ids)
            score = lambda e: scope.model(inputs_embeds=e, use_cache=False).logits[:, -1, more[j]]
            found.append(attr.IntegratedGradients(score).attribute(x, torch.zeros_like(x), n_steps=steps, method="riemann_middle")[0].sum(-1))
        return found

    for j, theirs in enumerate(captum(len(more))):
        torch.testing.assert_close(ours.values[j, :len(theirs)].float(), theirs.detach().float(), rtol=2e-3, atol=2e-3 * theirs.abs().max().item())
    for n in (1, len(more)):
        piece = scope.tokenizer.decode(more[:n])
        found = ratios(lambda: captum(n), {"integrated gradients": lambda: integrated_gradients(scope, text, piece, baseline="zero", steps=steps, quantity="logit")})
        show(f"integrated gradients, {steps} steps, {n} targets, ratio to Captum", found)
    needed = {f"passes to a gap of 5 %, {q}": float(integrated_gradients(scope, text, quantity=q, tol=0.05).steps) for q in ("prob", "logprob")}
    show("adaptive integrated gradients from the mean embedding", needed)


@torch.no_grad()
def test_search():
    faiss = pytest.importorskip("faiss")
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(25_000, 8, 192, generator=g), dim=-1)
    bank = VectorBank(list(range(8)), [rows.half()], torch.zeros(25_000, 3, dtype=torch.long), [""])
    queries = torch.nn.functional.normalize(torch.randn(32, 192, generator=g), dim=-1)
    index = faiss.IndexFlatIP(192)
    index.add(rows.flatten(0, 1).numpy())
    torch.testing.assert_close(bank.search(queries).cosine, torch.tensor(index.search(queries.numpy(), 5)[0]), atol=1e-3, rtol=0)
    faiss.omp_set_num_threads(1)
    show("32 exact searches among 200,000 vectors, ratio to faiss (which holds them in float32; ours in half precision, mappable)",
         ratios(lambda: index.search(queries.numpy(), 5), {"search": lambda: bank.search(queries)}))


def test_import():
    def seconds(code):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begun

    show("import tokenscope, seconds above a bare interpreter", {"import": float(np.median([seconds("import tokenscope") - seconds("pass") for _ in range(3)]))})
