"The README: its examples run and show that something happened, its words are those of the package, every guide is linked."
import configparser
import contextlib
import io
import re

import pytest

from notebooks import ROOT
from tokenscope.app.contract import RETURNS
from tokenscope.text.names import SITES

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = README.split("## Three examples")[1].split("\n## ")[0]


def shown() -> list[tuple[str, str]]:
    "Each example with the output that stands below it, perhaps none."
    blocks = re.findall(r"```python\n(.*?)```\n+(?:```\n(.*?)```)?", EXAMPLES, re.S)
    assert len(blocks) == 6
    return blocks


def differ(texts: list[str]) -> bool:
    return len(texts) == 2 and texts[0].split(":", 1)[1].strip() != texts[1].split(":", 1)[1].strip()


def test_every_example_shows_before_and_after():
    outputs = [output for _, output in shown()]
    right, wrong = outputs[1:3]
    assert "·Paris" in right and "·Berlin" in wrong and right.splitlines()[:5] == wrong.splitlines()[:5] != right.splitlines()
    for output in outputs[4:]:  # "plain: …" above "edited: …"
        assert [line.split(":")[0] for line in output.splitlines()] == ["plain", "edited"]
        assert differ(output.splitlines())


@pytest.mark.model
def test_the_examples_run_as_written_and_differ():
    names = {}
    for code, output in shown():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, "README.md", "exec"), names)
        if "plain:" in output:
            assert differ(said.getvalue().splitlines())
            assert said.getvalue().strip() == output.strip()


def test_the_words_of_the_package_are_there():
    words = README.split("## Three words")[1].split("\n## ")[0]
    settings = configparser.ConfigParser(delimiters=["="], comment_prefixes=["#"])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    extras = [key.removesuffix("_requirements") for key in settings["DEFAULT"] if key.endswith("_requirements")]
    assert not [word for word in (*SITES, *RETURNS, *extras) if f"`{word}`" not in words]
    assert len(words.strip().splitlines()) <= 10


def test_every_guide_is_linked_and_it_stays_short():
    for path in (ROOT / "nbs/guides").glob("*.ipynb"):
        assert f"(nbs/guides/{path.name})" in README, path.name
    assert len(README.split("## Techniques")[0].split()) < 1100
