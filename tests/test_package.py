"What people expect of a package: a wheel that is whole and small, a citation, a changelog, versions that agree, badges that are true."
import configparser
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from notebooks import ROOT
from tokenscope import __version__
from tokenscope.app.cards import cards

sys.path.insert(0, str(ROOT / "nbs"))
from citation import citation

SETTINGS = configparser.ConfigParser(delimiters=["="], comment_prefixes=["#"])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TESTED = "3.11"  # where the whole suite was run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the tree."
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("tokenscope", "README.md", "LICENSE", "settings.ini", "setup.py", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_is_whole_and_small(wheel):
    assert wheel.stat().st_size < 50 * 2**20
    inside = set(zipfile.ZipFile(wheel).namelist())
    there = {str(p.relative_to(ROOT)) for p in (ROOT / "tokenscope").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert there <= inside, sorted(there - inside)
    assert not [name for name in inside if not name.startswith(("tokenscope/", f"tokenscope_lab-{__version__}.dist-info/"))]


def test_the_wheel_says_what_it_needs(wheel):
    meta = zipfile.ZipFile(wheel).read(f"tokenscope_lab-{__version__}.dist-info/METADATA").decode()
    assert f"Version: {__version__}" in meta and "Requires-Python: >=3.10" in meta
    needed = set(re.findall(r"^Requires-Dist: ([\w.-]+)[^;\n]*$", meta, re.M))
    assert needed == {re.match(r"[\w.-]+", r)[0] for r in SETTINGS["DEFAULT"]["requirements"].split()}


def test_every_paper_is_cited():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert text == citation(), "run `make export`"
    cited = yaml.safe_load(text)
    assert cited["version"] == __version__ and len(cited["references"]) == len(cards())
    assert all(r["authors"] and r["title"] and 2015 < r["year"] < 2035 for r in cited["references"])


def test_the_changelog_knows_this_version():
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_covers_what_is_supported():
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert matrix["python"] == PYTHONS and SETTINGS["DEFAULT"]["min_python"] == PYTHONS[0]
    lowest = re.search(r"transformers>=([\d.]+)", SETTINGS["DEFAULT"]["requirements"])[1]
    assert [row["transformers"] for row in matrix["include"]] == [f"transformers=={lowest}.0"]
    assert any("build" in step.get("run", "") for step in jobs["wheel"]["steps"])


def test_badges_are_true():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"!\[([^\]]*)\]\((?:nbs/)?(images/badge_[^)]*\.svg)\)", readme)
    assert {text for text, _ in badges} == {f"Python {PYTHONS[0]} or later, tested on {TESTED}", f"Licence {SETTINGS['DEFAULT']['license']}"}
    for text, file in badges:
        assert all(word in (ROOT / "nbs" / file).read_text(encoding="utf-8") for word in text.split(" ", 1))
