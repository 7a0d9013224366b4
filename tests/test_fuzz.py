"""Random edits on random forms of a model in random uses, against an oracle in plain PyTorch: right numbers or a `ScopeError`.

`TOKENSCOPE_FUZZ=50000` tries more; failures that were found stand below as examples."""
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from fuzz import FORMS, Example, USES, tried
from oracle import SQUARES, Change

VECTORS = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "q", "k", "v", "z", "logits")
HEADS = {"q": 4, "z": 4, "attn_scores": 4, "pattern": 4, "k": 2, "v": 2}

numbers = st.integers(-3, 8)
places = st.one_of(st.sampled_from(["all", "not first", "first", "last", "prompt", "generated"]), numbers,
                   st.lists(numbers, min_size=1, max_size=3).map(tuple), st.tuples(st.integers(0, 4), st.integers(1, 9)).map(lambda p: range(*p)))


@st.composite
def changes(draw):
    "An edit that moves something: neither neutral nor so large that everything is lost in it."
    site = draw(st.sampled_from([*VECTORS, *SQUARES]))
    op = draw(st.sampled_from(["add", "scale", "set", "fn", "fn in place"]))
    some = lambda n: st.none() | st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True).map(tuple)
    return Change(site, None if site in ("embed", "logits") else draw(some(3)), op, draw(st.sampled_from([-1.5, -0.5, 0.25, 2.0])),
                  site not in SQUARES and draw(st.booleans()), draw(places), draw(some(HEADS[site])) if site in HEADS else None,
                  draw(places) if site in SQUARES else "all", draw(st.sampled_from(["always", "always", "prompt", "generated"])))


rows = st.lists(st.lists(st.integers(3, 52), min_size=3, max_size=6).map(tuple), min_size=1, max_size=3).map(tuple)
examples = st.builds(Example, st.sampled_from(["llama", "llama", "mistral"]), st.sampled_from(list(FORMS)), st.sampled_from(list(USES)),
                     st.lists(changes(), min_size=1, max_size=2).map(tuple), rows,
                     st.sampled_from(["embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "q", "k", "v", "z", "attn_scores", "pattern"]))


N = int(os.environ.get("TOKENSCOPE_FUZZ", 2000))
TABLE = os.environ.get("TOKENSCOPE_FUZZ_TABLE")  # where `make fuzz` writes what it saw
seen = Counter()


@pytest.fixture(scope="module", autouse=True)
def table(request):
    yield
    if TABLE and not request.session.testsfailed:  # the page says that none is wrong
        rows = [dict(form=f, use=u, outcome=o, n=n) for (f, u, o), n in sorted(seen.items())]
        Path(TABLE).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# the same examples in each run of `make test`; others in each run of `make fuzz`
@pytest.mark.timeout(36_000 if TABLE else 900)
@settings(max_examples=N, deadline=None, derandomize=not TABLE, suppress_health_check=list(HealthCheck), print_blob=True, database=None)
@given(examples)
def test_right_or_refused(example):
    outcome = tried(example)
    seen[example.form, example.use, outcome.split(":")[0] if outcome != "right" else outcome] += 1
