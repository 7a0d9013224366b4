"Claims: honest by construction, collected from saved outputs."
import json
import re
from decimal import Decimal
from html import escape

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tokenscope.measure.claims import CLAIMS_MIME, Claim, claim, claim_text, claims_table, new_page
from tokenscope.measure.collected_claims import claims_page, collect_claims
from tokenscope.text.names import ScopeError


@pytest.fixture(autouse=True)
def fresh_page():
    new_page()
    yield
    new_page()


def save(path, bundle, card=""):
    "A saved notebook with one output."
    cells = [{"cell_type": "markdown", "source": ["# letters\n", "> promise"]}, {"cell_type": "code", "source": card, "outputs": []},
             {"cell_type": "code", "source": "claims_table()", "outputs": [{"output_type": "execute_result", "data": bundle}]}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}), encoding="utf-8")


@pytest.mark.parametrize("holds, verdict", [(True, "holds"), (False, "does not hold"), (np.bool_(True), "holds"), (np.False_, "does not hold")])
def test_verdicts(holds, verdict):
    made = claim("Steering helps", 0.7, control=0.5, holds=holds, n=40, seeds=[0, 1, 2], source="Table 1")
    assert made.verdict == verdict and type(made.holds) is bool and made.seeds == 3
    assert f"{verdict}</b>" in made._repr_html_() and "seeds = 3" in made._repr_html_()


@pytest.mark.parametrize("arguments, message", [
    (dict(measured=float("nan"), control=0), "Not a finite claim value"),
    (dict(measured=np.inf, control=0), "Not a finite claim value"),
    (dict(measured=0.5, control=np.float32("nan")), "Not a finite claim value"),
    (dict(measured=True, control=0), "Not a claim value"),
    (dict(measured=None, control=0), "Not a claim value"),
    (dict(measured=1 + 2j, control=0), "Not a claim value"),
    (dict(measured=[0.5], control=0), "Not a claim value"),
    (dict(measured=np.zeros(3), control=0), "More than one claim value"),
    (dict(measured="  ", control=0), "Empty claim value"),
    (dict(measured=0.5), "A claim without a control"),
    (dict(measured=0.5, control="none needed"), "A missing reason"),
    (dict(measured=0.5, control="None needed: "), "A missing reason"),
    (dict(measured=0.5, control=0.4, holds="yes"), "Not a verdict"),
    (dict(measured=0.5, control=0.4, holds=1), "Not a verdict"),
    (dict(measured=0.5, holds=None), "A number without a verdict"),
    (dict(measured=0.5, control=0.4, n=0), "Not a count"),
    (dict(measured=0.5, control=0.4, n=2.5), "Not a count"),
    (dict(measured=0.5, control=0.4, seeds=[]), "Not a count"),
])
def test_dishonest_claims_are_refused(arguments, message):
    with pytest.raises(ScopeError, match=message):
        claim("Steering helps", **arguments)
    assert len(claims_table()) == 0


@pytest.mark.parametrize("text", ["", "   ", None, 3])
def test_a_claim_is_a_sentence(text):
    with pytest.raises(ScopeError, match="without a sentence"):
        claim(text, 1, control=0)


def test_rerun_replaces_and_keeps_place():
    claim("first", 1, control=0)
    claim("second", 2, control=0)
    claim("first", 3, control=0, holds=False)
    assert [(r["text"], r["measured"]) for r in claims_table().records] == [("first", 3), ("second", 2)]
    new_page()
    assert len(claims_table()) == 0 and "No claims" in claims_table()._repr_html_()


def test_table_is_a_snapshot_and_json():
    claim("NumPy numbers", np.float32(0.5), control=np.int64(2), n=np.int64(7))
    table = claims_table()
    claim("later", 1, control=0)
    bundle = json.loads(json.dumps(table._repr_mimebundle_()))
    assert len(bundle[CLAIMS_MIME]["claims"]) == 1 and bundle[CLAIMS_MIME]["claims"][0]["measured"] == 0.5
    assert "holds: NumPy numbers (measured 0.500, control 2)" == bundle["text/plain"]


@pytest.mark.parametrize("value, shown", [(0.123456, "0.123"), (12.0, "12.0"), (-0.5, "−0.500"), (49152, "49,152"), (1234.5, "1,234"), (3e-9, "3.00e−09"),
                                          (0.0, "0"), (1e6, "1.00e+06"), (None, "–"), ("3 of 5", "3 of 5"), (999999.0, "999,999")])
def test_numbers_are_short(value, shown):
    assert claim_text(value) == shown


@given(st.floats(-1e300, 1e300))
def test_any_number_keeps_three_digits(value):
    shown = float(Decimal(claim_text(value).replace("−", "-").replace(",", "")))
    assert shown == value or abs(shown - value) <= 0.006 * abs(value) and len(claim_text(value)) <= 10


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_text_is_escaped(text, words):
    shown = Claim(text, words, words)._repr_html_()
    assert f"<td>{escape(text)}</td>" in shown and shown.count("<") == Claim("a", "b", "c")._repr_html_().count("<")


def test_collect_reads_saved_outputs_only(tmp_path):
    claim("Steering <b>helps</b>", 0.7, control=0.5, n=40)
    claim("It needs a large model", "no such model here", holds=None)
    card = 'raise SystemExit\ntechnique = {"title": "ZeroTuning", "paper": "A paper", "arxiv": "2505.1"}'
    save(tmp_path / "steering/zero.ipynb", claims_table()._repr_mimebundle_(), card=card)
    new_page()
    claim("Other", 1, control=2, holds=False)
    claim("Between", 1, control=1, holds="undecided")
    save(tmp_path / "lenses/other.ipynb", claims_table()._repr_mimebundle_(), card="technique = {'family': 'lenses'}")
    save(tmp_path / "core/lesson.ipynb", claims_table()._repr_mimebundle_())
    save(tmp_path / ".ipynb_checkpoints/other.ipynb", claims_table()._repr_mimebundle_(), card="technique = {'family': 'lenses'}")
    save(tmp_path / "plain.ipynb", {"text/plain": "3"})
    records = collect_claims(tmp_path)
    assert [r["notebook"] for r in records] == ["lenses/other.ipynb"] * 2 + ["steering/zero.ipynb"] * 2
    assert records[0]["title"] == "other" and records[2]["title"] == "ZeroTuning" and records[2]["paper"] == "A paper"
    page = claims_page(records)
    assert "4 claims of 2 pages: 1 holds, 1 does not hold, 1 undecided, 1 not testable here" in page and '<td><b class="o">≈ undecided</b></td>' in page
    assert "<b>helps" not in page
    assert '<a href="steering/zero.html">ZeroTuning</a>' in page
    assert collect_claims(tmp_path) == records


def test_collect_says_which_notebook_is_broken(tmp_path):
    (tmp_path / "half.ipynb").write_text('{"cells": [', encoding="utf-8")
    with pytest.raises(ScopeError, match="half.ipynb"):
        collect_claims(tmp_path)
    with pytest.raises(ScopeError, match="No notebook folder"):
        collect_claims(tmp_path / "missing")


def test_the_matrix_has_a_mark_a_claim_that_leads_to_its_number(tmp_path):
    claim("Steering \"helps\"", 0.7, control=0.5)
    claim("It helps everywhere", 0.1, control=0.2, holds=False)
    claim("It needs a large model", "no such model here", holds=None)
    for name in ("steering/zero", "lenses/zero"):
        save(tmp_path / f"{name}.ipynb", claims_table()._repr_mimebundle_(), card="technique = {'title': 'Zero'}")
    page = claims_page(collect_claims(tmp_path), {"steering": "How do I <change> it?"})
    marks = re.findall(r'<a class="ts-mark (\w)" data-v="\w" href="#([\w-]+)" title="([^"]+)"', page)
    assert [kind for kind, *_ in marks] == ["y", "x", "u"] * 2
    ids = re.findall(r'<tr id="([\w-]+)"', page)
    assert [place for _, place, _ in marks] == ids
    assert len(set(ids)) == 6
    assert marks[0][2] == "holds: Steering &quot;helps&quot; (measured 0.700, control 0.500)"
    assert "How do I &lt;change&gt; it?" in page
    assert "<script" not in page
