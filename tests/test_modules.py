"The package as a whole: imports, names, layers, sizes, outputs."
import ast
import json
import re
import subprocess
import sys

import pytest

from notebooks import ROOT, notebooks
from tokenscope.app.gallery import FAMILIES, cards
from tokenscope.app.house import ROOMS, room_pages, upward_imports

LIGHT = (
    "text.names text.fetch text.tokens show.marks show.colours show.svg show.pictures show.strip show.display show.controls show.twin show.explore "
    "data.haystacks measure.intervals measure.claims measure.diagnosis app.house app.gallery"
).split()
MODULES = sorted(p for p in (ROOT / "tokenscope").rglob("*.py") if not p.name.startswith("_"))
name_of = lambda p: ".".join(p.relative_to(ROOT).with_suffix("").parts)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_light_modules_import_no_model_library():
    for module in ["tokenscope", *(f"tokenscope.{m}" for m in LIGHT)]:
        assert fresh(f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])") == "[]", module


def test_every_module_imports_alone():
    for path in MODULES:
        fresh(f"import {name_of(path)}")


def test_the_lazy_names_exist():
    assert fresh("import tokenscope; print(all(getattr(tokenscope, n) is not None for n in tokenscope.__all__))") == "True"


def test_public_names_are_unique():
    homes = {}
    for path in MODULES:
        for node in tree(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and not any(getattr(d, "id", "") == "patch" for d in node.decorator_list):
                homes.setdefault(node.name, []).append(name_of(path))
    assert not {n: h for n, h in homes.items() if len(h) > 1}


def test_imports_run_one_way():
    assert upward_imports() == []
    for room in ROOMS:
        room_pages(room)  # refuses modules that import each other


def test_every_notebook_lives_in_a_room_or_a_family():
    for path in MODULES:
        assert path.parent.name in (*ROOMS, *FAMILIES), f"{path.parent.name} is no room"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_things_have_docstrings(path):
    for node in tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or any(getattr(d, "id", "") == "patch" for d in node.decorator_list), node.name


def test_no_undefined_names():
    done = subprocess.run([sys.executable, "-m", "pyflakes", *map(str, MODULES)], capture_output=True, text=True)
    assert not [line for line in done.stdout.splitlines() if "undefined name" in line]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def test_sizes(capsys):
    "One table of every notebook's size, and the house's limits."
    over, rows = [], []
    for path in notebooks():
        code = ["".join(c["source"]) for c in cells(path) if c["cell_type"] == "code"]
        exported = [c for c in code if re.match(r"\s*#\|\s*exports?i?\b", c)]
        lines = [len([x for x in c.splitlines() if x.strip() and not x.startswith("#|")]) for c in exported]
        kb, limit = path.stat().st_size / 1024, 300
        rows.append((str(path.relative_to(ROOT / "nbs")), sum(lines), max(lines, default=0), round(kb)))
        if kb > 300 or sum(lines) > limit:
            over.append(rows[-1])
    with capsys.disabled():
        print("\n" + "\n".join(f"{n:44}{a:5} exported lines{b:5} in the longest cell{k:5} KB" for n, a, b, k in rows))
    assert not over


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_saved_outputs_are_fit_to_publish(path):
    for cell in cells(path):
        if cell["cell_type"] != "code":
            continue
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse("".join(cell["source"])).body}
        assert len(kinds) < 2 or "".join(cell["source"]).startswith("#| hide"), f"imports and code in one cell: {''.join(cell['source'])[:80]}"
        for output in cell["outputs"]:
            text = json.dumps(output)
            assert output["output_type"] != "error" and "widget-view+json" not in text and output.get("name") != "stderr"
            assert not re.search(r"0x[0-9a-f]{8,}|/root/|/home/|/work/|/tmp/", text), text[:300]


def test_notebooks_and_modules_are_in_step(tmp_path):
    import shutil
    for part in ("nbs", "tokenscope", "pyproject.toml", "settings.ini", "setup.py", "README.md"):
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    subprocess.run([str(ROOT / ".venv/bin/nbdev-export")] if (ROOT / ".venv/bin/nbdev-export").exists() else ["nbdev-export"], cwd=tmp_path, check=True, capture_output=True)
    changed = [str(p) for p in (tmp_path / "tokenscope").rglob("*.py") if p.read_text() != (ROOT / p.relative_to(tmp_path)).read_text()]
    assert not changed


def test_every_card_is_whole():
    assert {c["slug"] for c in cards()} >= {"zerotuning", "tokenizer_betrayal"}
    for card in cards():
        path = ROOT / "tokenscope" / card["family"] / f"{card['slug']}.py"
        names = {n.name for n in tree(path).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        assert {card["front"], card["control"]} <= names and card["family"] in FAMILIES
        headings = re.findall(r"^## (.+)$", "\n".join("".join(c["source"]) for c in cells(ROOT / "nbs" / card["family"] / f"{card['slug']}.ipynb") if c["cell_type"] == "markdown"), re.M)
        assert headings == ["See it", "How it works", "Turn it", "Check it", "Does the paper hold here?", "On your own model", "Limits", "See also"]


def test_readme_is_the_index():
    readme, index = (ROOT / "README.md").read_text(encoding="utf-8"), cells(ROOT / "nbs/index.ipynb")
    for cell in index:
        if cell["cell_type"] == "markdown":
            assert "".join(cell["source"]).replace("(images/", "(nbs/images/").strip() in readme
    for card in cards():
        assert f"[{card['title']}](nbs/{card['family']}/{card['slug']}.ipynb)" in readme
