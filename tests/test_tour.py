"The tour and the console command, on the real model, a tiny one, and bad input."
import re

import pytest

import tokenscope
from architectures import tiny
from seeing_models import FAMILIES, tiny_seeing
from test_seeing import ONE, TWO, picture
from tokenscope.text.names import ScopeError
from tokenscope.core.scope import Scope, load
from tokenscope.app.commands import main
from tokenscope.app.picture_views import PICTURE_VIEWS
from tokenscope.app.tour import VIEWS, tour


@pytest.fixture(scope="module")
def scope():
    return load()


@pytest.mark.parametrize("text", ["Hi", "A 👨‍👩‍👧 says مرحبا and नमस्ते.", "</script><img src=x onerror=alert(1)> & <b>", "two\n\nlines\tand\u202ereversed", "a lone \ud800 surrogate"])
def test_any_text_gives_a_whole_page(scope, text, tmp_path):
    page = tour(text, tmp_path / "t.html", scope).read_text(encoding="utf-8")
    assert page.count("<section") == page.count("</section>") == len(VIEWS) and page.endswith("</html>") and len(page) < 400_000
    assert "<img src=x" not in page and "<script" not in page and not re.search(r'(src|href)="(?!#|data:)', page)


def test_what_cannot_be_toured(scope, tmp_path):
    for text in ("", "  \n"):
        with pytest.raises(ScopeError, match="Nothing to tour"):
            tour(text, tmp_path / "t.html", scope)
    with pytest.raises(ScopeError, match="too long"):
        tour("word " * 9000, tmp_path / "t.html", scope)
    with pytest.raises(ScopeError, match="No tokenizer"):
        tour("text", tmp_path / "t.html", Scope(tiny("llama")))
    assert not (tmp_path / "t.html").exists()


def test_the_command_line(tmp_path, capsys, monkeypatch, scope):
    monkeypatch.setattr("tokenscope.core.scope.load", lambda name=None: scope)
    assert main(["tour", "Hello there", "-o", str(tmp_path / "t.html")]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == str(tmp_path / "t.html")
    assert main(["tour", " "]) == 2 and "Nothing to tour" in capsys.readouterr().err
    assert main(["tour", "x", "-o", str(tmp_path / "no" / "t.html")]) == 2
    assert main(["gallery"]) == 0 and "ZeroTuning" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and tokenscope.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_views_of_pictures(family):
    scope = Scope(*tiny_seeing(family))
    for chat in (ONE, TWO):
        for view in PICTURE_VIEWS:
            assert view(scope, chat).shown


def test_a_picture_gives_a_page(tmp_path):
    picture(30, 20).save(tmp_path / "p.png")
    scope = Scope(*tiny_seeing("llava"))
    page = tour("What <b>is</b> it?", tmp_path / "t.html", scope, tmp_path / "p.png").read_text(encoding="utf-8")
    assert page.count("<section") == len(PICTURE_VIEWS) and "<b>is" not in page and "<script" not in page
    with pytest.raises(ScopeError, match="vision-language"):
        tour("What?", tmp_path / "t.html", Scope(tiny("llama"), scope.tokenizer), tmp_path / "p.png")
