"Whoever follows the guide `add_a_technique` word for word ends with a technique that passes: its cells become a notebook in a copy of the tree."
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from notebooks import ROOT

GUIDE = ROOT / "nbs/guides/add_a_technique.ipynb"
PAGE = "nbs/steering/mlp_dimmer.ipynb"
pytestmark = pytest.mark.timeout(900)  # it exports, runs a page and some tests in processes of their own
QUOTED = re.compile(r"^(`{3,4})(markdown|python)\n(.*?)\n\1$", re.M | re.S)


def sources(path: Path) -> list[tuple[str, str]]:
    "The cells of a notebook: kind and source."
    return [(c["cell_type"], "".join(c["source"])) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def guided_cells() -> tuple[list[tuple[str, str]], list[str]]:
    "What the guide asks a reader to put into the notebook, in order; and into the guide of errors."
    cells, errors = [], []
    for kind, source in sources(GUIDE):
        if kind == "code":
            cells.append(("code", re.sub(r"^# yours: (#\|.*)", r"\1", source)))
            continue
        for _, language, text in QUOTED.findall(source):
            if text.startswith("####"):
                errors.append(text)
            else:
                cells.append(("markdown" if language == "markdown" else "code", text))
    return cells, errors


def as_cell(number: int, kind: str, source: str) -> dict:
    "A cell as a notebook keeps it."
    cell = {"cell_type": kind, "id": f"guided{number:02}", "metadata": {}, "source": source}
    return {**cell, "outputs": [], "execution_count": None} if kind == "code" else cell


def append_cells(path: Path, cells: list[tuple[str, str]]) -> None:
    "Put cells at the end of a notebook, perhaps a new one."
    notebook = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": [], "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}
    notebook["cells"] += [as_cell(i, *cell) for i, cell in enumerate(cells)]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    "A copy of the tree in which a reader followed the guide up to its first command; and a way to run Python there."
    tree = tmp_path_factory.mktemp("guide") / "tree"
    tree.mkdir()
    for name in ("nbs", "tests", "tokenscope", ".github"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "results.jsonl"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    cells, errors = guided_cells()
    append_cells(tree / PAGE, cells)
    append_cells(tree / "nbs/guides/errors.ipynb", [("markdown", text) for text in errors])

    def python(*arguments: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run([sys.executable, *arguments], cwd=tree, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    python("-m", "ruff", "format", "-q", "nbs")  # the lines of `make export`
    python("-c", "from nbdev.doclinks import nbdev_export; nbdev_export()")
    for step in ("nbs/stubs.py", "tests/house.py", "nbs/readme.py", "nbs/citation.py"):
        python(step)
    return tree, python


def test_export_writes_the_module_and_the_lists(followed):
    tree, _ = followed
    assert "def mlp_dimmer_panel" in (tree / "tokenscope/steering/mlp_dimmer.py").read_text(encoding="utf-8")
    for name in ("README.md", "nbs/index.ipynb"):
        assert "[MLP dimmer](nbs/steering/mlp_dimmer.ipynb)" in (tree / name).read_text(encoding="utf-8")
    assert "Turn down one MLP" in (tree / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.model
def test_its_contract_panel_snippet_and_page_pass(followed):
    tree, python = followed
    python("tests/notebooks.py", "--save", str(tree / PAGE))  # the lines of `make notebooks`
    python("-c", "from nbdev.clean import nbdev_clean; nbdev_clean('nbs/steering/mlp_dimmer.ipynb')")
    python("-c", "from tokenscope.show.explore import clean_notebooks; clean_notebooks('nbs')")
    files = [f"tests/test_{name}.py" for name in ("contract", "panels", "own_model")]
    said = python("-m", "pytest", "-q", *files, "-k", "mlp_dimmer and not runs_as_written")  # the page ran those lines
    passed = sum(map(int, re.findall(r"(\d+) x?passed", said)))
    assert passed >= 31 and "skipped" not in said and "xfailed" not in said, said


@pytest.mark.model
def test_what_is_asked_of_all_pages_passes(followed):
    _, python = followed
    asked = "mlp_dimmer or readme or card or unique or one_way or message or orphaned or cited or sizes or formatted or spelling"
    files = [f"tests/test_{name}.py" for name in ("house", "modules", "errors", "vocabulary", "package")]
    assert "failed" not in python("-m", "pytest", "-q", *files, "-k", asked)


def test_the_guide_shows_the_headings_and_the_files():
    cells, errors = guided_cells()
    headings = re.findall(r"^## (.+)$", "\n".join(source for kind, source in cells if kind == "markdown"), re.M)
    assert headings == ["See it", "How it works", "Turn it", "Check it", "Does the paper hold here?", "On your own model", "Limits", "See also"]
    assert len(errors) == 1 and cells[1] == ("code", "#| default_exp steering.mlp_dimmer")
