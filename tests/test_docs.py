"The site: all pages there, no broken link, nothing fetched from anywhere."
import ast
import html.parser
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from notebooks import ROOT, notebooks
from tokenscope.app.cards import FAMILIES, cards
from tokenscope.app.house import ROOMS


class Links(html.parser.HTMLParser):
    "What a page links to and what it loads."
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get("id"), attrs.get("name")}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag in ("script", "img", "iframe", "source", "video") and attrs.get("src"):
            self.loads.append(attrs["src"])
        if tag == "link" and attrs.get("href") and attrs.get("rel") not in ("canonical",):
            self.loads.append(attrs["href"])


def pages(site) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_notebook_has_its_page(site):
    for path in notebooks():
        assert (site / path.relative_to(ROOT / "nbs")).with_suffix(".html").exists(), path
    assert (site / "guides/gallery.html").exists() and (site / "claims.html").exists()


def test_no_page_loads_anything_from_elsewhere(site):
    for page in pages(site):
        for address in Links(page.read_text(encoding="utf-8")).loads:
            assert not urlsplit(address).netloc, f"{page.name} loads {address}"
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8").replace("'", "").replace('"', ""), sheet


def test_no_internal_link_is_broken(site):
    broken = []
    for page in pages(site):
        for address in Links(page.read_text(encoding="utf-8")).links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not parts.path or parts.path.endswith("letters.html"):  # a made-up page in a lesson
                continue
            target = (page.parent / unquote(parts.path)).resolve()
            if not (target.exists() or target.with_suffix(".html").exists()):
                broken.append(f"{page.relative_to(site)} -> {address}")
    assert not broken


def test_gallery_and_claims_are_complete(site):
    shown = (site / "guides/gallery.html").read_text(encoding="utf-8")
    assert all(c["title"] in shown and FAMILIES[c["family"]] in shown for c in cards())
    records = json.loads((site / "claims.json").read_text(encoding="utf-8"))
    claims = (site / "claims.html").read_text(encoding="utf-8")
    assert {r["title"] for r in records} == {c["title"] for c in cards()} and len(records) >= 10
    assert claims.count("does not hold") >= sum(r["verdict"] == "does not hold" for r in records) > 0
    for card in cards():
        assert f"{card['slug']}.html" in shown


def test_pages_show_signatures_and_search_finds_them(site):
    page = (site / "core/scope.html").read_text(encoding="utf-8")
    assert "max_new_tokens" in page and "Let the model continue" in page
    assert "surprisal" in (site / "search.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "tokenscope").rglob("*.py")), ids=lambda path: path.stem)
def test_no_docstring_opens_a_tag(path):
    "A bare <b> in a docstring makes the rest of the page bold, a bare <eos> is not shown."
    named = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    texts = {n.name: re.sub("`[^`]*`", "", ast.get_docstring(n) or "") for n in named}
    assert not {name: text for name, text in texts.items() if re.search("<[/a-z!]", text)}


def test_every_notebook_is_in_the_sidebar():
    import sys
    sys.path.insert(0, str(ROOT / "nbs"))
    from build_docs import sidebar
    flat = str(sidebar())
    assert not [p for p in notebooks() if str(p.relative_to(ROOT / "nbs")) not in flat]


def test_the_front_page_has_something_to_turn_and_the_seven_questions(site):
    page = site / "index.html"
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 300_000
    assert 0 < text.index("data-ts=") < text.rindex("Two commands")  # the heading, behind the list of headings
    assert {f"{family}/index.html" for family in FAMILIES} <= set(Links(text).links)
    assert "app/house.html" in Links(text).links


def test_every_room_has_a_page_that_shows_what_is_used_most():
    for room in ROOMS:
        cells = json.loads((ROOT / "nbs" / room / "index.ipynb").read_text(encoding="utf-8"))["cells"]
        lessons = [c for c in cells if c["cell_type"] == "code" and c["outputs"]]
        assert len(lessons) >= 3, f"{room}/index shows {len(lessons)} things; run it with `make notebooks`"
