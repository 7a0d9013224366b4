"The house in order: format, sizes, imports, and that each fault is named."
import ast
import json
import shutil
import subprocess
import sys

import pytest

import house
from notebooks import ROOT
from house import BODY, COLUMNS, KILOBYTES, LINES, NODES, code_lines, excess, function_sizes, page_name, page_size, pages, size_table, without_panel

# Pages from before the limits, with what of each exceeds them: exported lines without the panel (300), functions of more than 30 lines or
# 200 nodes, shown lines of more than 100 columns. This list only shrinks: a number may not grow, and what is mended leaves it.
OVERSIZE = {
    "lenses/counting_readout": {"lines": 369, "functions": 2},
    "lenses/function_tokens": {"lines": 431, "functions": 2},
    "lenses/glot": {"lines": 355},
    "lenses/mixing_mechanisms": {"functions": 2},
    "lenses/needle_threading": {"lines": 369, "functions": 2},
    "lenses/rlvr_geometry": {"lines": 437, "functions": 1},
    "lenses/step_sae": {"lines": 518},
    "steering/austeer": {"lines": 311},
    "steering/grains": {"lines": 378, "functions": 4},
    "steering/langfir": {"functions": 1},
    "steering/neural_foxp2": {"lines": 350, "functions": 2, "wide": 1},
    "steering/struct_transform": {"lines": 356, "functions": 1, "wide": 1},
    "steering/zerotuning": {"lines": 314},
    "tokenizers/charbench": {"lines": 525, "functions": 2},
    "tokenizers/hierarchical_ar": {"lines": 466, "functions": 1},
    "tokenizers/lexinvariant": {"lines": 448},
    "tokenizers/lmtraj": {"lines": 501, "functions": 3},
    "tokenizers/tokenization_counts": {"lines": 493, "functions": 3},
    "tokenizers/tokenizer_betrayal": {"lines": 465, "functions": 2},
    "tokenizers/triadic_suffix": {"lines": 442, "functions": 1},
}


def test_notebooks_are_formatted():
    assert not house.format_faults(), "run `make export`"


def test_imports_are_used_and_names_defined_once():
    assert not house.name_faults()


def test_every_notebook_is_exported_to_where_it_lives():
    assert not house.homeless()


def test_sizes(capsys):
    "One table of every page's size; nothing over the limits but what the list above allows."
    with capsys.disabled():
        print("\n" + size_table())
    sizes = {page_name(path): page_size(path) for path in pages()}
    grown = []
    for page, size in sizes.items():
        for key, number in excess(size).items():
            if number > OVERSIZE.get(page, {}).get(key, 0):
                grown.append(f"{page} has {number} {key}" + (f": {size['over']}" if key == "functions" else ""))
    assert not grown, "\n".join([f"The limits: {LINES} lines a page, {BODY} lines and {NODES} nodes a function, {COLUMNS} columns", *grown])
    assert not [page for page, size in sizes.items() if size["kb"] > KILOBYTES]
    mended = {page: key for page, listed in OVERSIZE.items() for key in listed if key not in excess(sizes.get(page, dict(lines=0, functions=0, wide=0)))}
    assert not mended, "mended: take it from the list"


def test_what_counts_as_a_line_and_a_node():
    source = '#| export\n\ndef f(\n    x,  # why\n):\n    "Promise."\n    # a comment\n    y = x + 1\n\n    return y\n\ndef f_panel(scope):\n    return scope'
    assert code_lines(source)[:2] == ["def f(", "    x,  # why"] and len(code_lines(source)) == 8
    assert len(code_lines(without_panel(source))) == 6
    assert list(function_sizes(source))[0] == ("f", 2, 8)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A folder of notebooks beside the real ones, for faults."
    monkeypatch.setattr(house, "NOTEBOOKS", tmp_path)

    def write(name: str, *sources: str):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": s, "metadata": {}, "outputs": [], "execution_count": None} for s in sources]}))
        return path
    return write


def test_a_room_that_does_not_exist_is_named(elsewhere):
    elsewhere("attic/box.ipynb", "#| default_exp attic.box")
    elsewhere("text/names.ipynb", "#| default_exp core.names")
    first, second = house.homeless()
    assert "'attic', which is no room; there are text, show" in first
    assert second == "nbs/text/names.ipynb is exported as core.names, which belongs into nbs/core/names.ipynb"


def test_what_exceeds_a_limit_is_seen(elsewhere):
    long = "def f():\n" + "    x = 1\n" * 31
    page = elsewhere("text/big.ipynb", "#| export\n" + "x = 1\n" * 270, "#| export\n" + long, "#| hide\n" + "#" * 101, "y = " + "1" * 101)
    assert excess(page_size(page)) == dict(lines=302, functions=1, wide=1)


def test_export_stops_at_a_house_in_disorder(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(house.ROOT / 'tests')!r}); import house; house.homeless = lambda: ['nbs/x.ipynb: no such room']; print(house.disorder())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=house.ROOT)
    assert "no such room" in done.stdout, done.stderr


def test_an_import_that_runs_upward_is_named_though_the_package_does_not_load(tmp_path):
    package = tmp_path / "tokenscope"
    shutil.copytree(house.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "learn", "data"))
    names = package / "text/names.py"
    names.write_text(names.read_text(encoding="utf-8") + "\nfrom tokenscope.core.edit import Edit\n", encoding="utf-8")
    (tmp_path / "tests").mkdir()
    shutil.copy(house.__file__, tmp_path / "tests")
    done = subprocess.run([sys.executable, "tests/house.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["The house is not in order:", "text/names imports core.edit, which is not in a room above"]


def _top_names(body):
    "Names that statements at the top of a cell give to something."
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
            continue
        inner = getattr(node, "body", [])
        yield from _top_names(inner)
        heads = [part for part in ast.iter_child_nodes(node) if part not in inner and not isinstance(node, ast.Expr)]
        yield from (n.id for head in heads for n in ast.walk(head) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def shadowed(path) -> set:
    "Names that a page's functions use, and that a cell of the page gives to something else."
    own, used, given = set(), set(), set()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.lstrip().startswith("%"):
            continue
        tree = ast.parse(source)
        if not source.startswith("#| export"):
            given |= set(_top_names(tree.body))
            continue
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                own |= {a.asname or a.name.split(".")[0] for a in node.names}
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
                used |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return own & used & given


def test_cells_leave_the_modules_names_alone():
    "A page shares its names with its module: a list called `train` breaks every function that calls `train`."
    assert not {p.name: names for p in sorted(ROOT.glob("nbs/*/*.ipynb")) if (names := shadowed(p))}
