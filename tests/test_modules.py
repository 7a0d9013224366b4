"The package as a whole: imports, names, layers, sizes, outputs."
import ast
import json
import re
import subprocess
import sys
from functools import cache, partial

import pytest

from notebooks import ROOT, notebooks
from tokenscope.app.cards import FAMILIES, cards
from tokenscope.app.house import ROOMS, module_imports, room_pages, upward_imports

LIGHT = (
    "text.names text.fetch text.token_bytes text.tokens show.marks show.colours show.svg show.pictures show.boxes show.strip show.strip_figures show.links show.units show.terminal show.display show.controls show.twin_script show.twin show.live_controls show.explore "
    "data.haystacks measure.intervals measure.claims measure.diagnosis app.contract app.cards app.house app.gallery"
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
    modules = ["tokenscope", *(f"tokenscope.{m}" for m in LIGHT)]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
    if heavy := {{"torch", "transformers"}} & set(sys.modules):
        print(module, "imports", heavy)
        break
"""
    assert fresh(code) == ""


ALONE = """
import ast, importlib, sys
from pathlib import Path

roots = {}  # a package that a module imports by its plain name, and the parts of it that the module uses
for name, path in MODULES.items():
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    plain = {(a.asname or a.name): a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names if "." not in a.name}
    dotted = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names if "." in a.name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in plain:
            part = f"{plain[node.value.id]}.{node.attr}"
            if part not in dotted:
                roots.setdefault(plain[node.value.id], {}).setdefault(node.attr, name)
for root, parts in roots.items():  # `import scipy` alone does not make `scipy.stats`
    package = importlib.import_module(root)
    for part, name in parts.items():
        if not hasattr(package, part):
            print(f"{name} uses {root}.{part}, which `import {root}` does not bring")
for name in MODULES:  # each sees only what it imports itself, directly or through others
    for loaded in [m for m in sys.modules if m.split(".")[0] == "tokenscope" and m not in NEEDS[name]]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name} does not import alone: {type(error).__name__}: {error}")
"""


imports_of = cache(partial(module_imports, top_level=True))


def needs(path) -> set[str]:
    "All modules of the package that a module imports at its top, and those that they import."
    seen, ahead = set(), [path]
    while ahead:
        for other in imports_of(ahead.pop()):
            if (file := (ROOT / "tokenscope" / other.replace(".", "/")).with_suffix(".py")).exists() and other not in seen:
                seen.add(other)
                ahead.append(file)
    return {f"tokenscope.{other}" for other in seen}


def test_every_module_imports_alone():
    "One process loads the libraries once and shows each module only what it imports: what a circle or a missing import would break."
    modules = {name_of(p): str(p) for p in MODULES}
    assert fresh(f"MODULES = {modules!r}\nNEEDS = {({name_of(p): needs(p) for p in MODULES})!r}\n{ALONE}") == ""


@pytest.mark.parametrize("module", ["core.scope", "app.tour"])
def test_a_module_imports_in_a_fresh_process(module):
    fresh(f"import tokenscope.{module}")


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


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def is_import(node) -> bool:
    "Is a statement an import, or imports for type checkers only?"
    checked = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, (ast.Import, ast.ImportFrom)) or checked


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_saved_outputs_are_fit_to_publish(path):
    for cell in cells(path):
        if cell["cell_type"] != "code":
            continue
        kinds = {is_import(n) for n in ast.parse("".join(cell["source"])).body}
        assert len(kinds) < 2 or "".join(cell["source"]).startswith("#| hide"), f"imports and code in one cell: {''.join(cell['source'])[:80]}"
        hidden = "".join(cell["source"]).startswith("#| hide")
        assert not (hidden and any("data" in o for o in cell["outputs"])), "#| hide hides the output too; say #| echo: false"
        for output in cell["outputs"]:
            text = json.dumps(output)
            unclean = "widget-view+json" in text or output.get("name") == "stderr"
            assert output["output_type"] != "error", f"{path.name} was saved with an error; run it again"
            assert not unclean, f"{path.name} was saved with traces of its run; `make clean-nbs` drops them"
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
