"""What the house asks of every page: the format, three limits of size, imports that are used and run one way.

`make export` runs this file, which says what is not in order; `python tests/house.py --sizes` prints the table of sizes and the list of pages that exceed them."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, PACKAGE = ROOT / "nbs", ROOT / "tokenscope"
LINES, BODY, NODES, COLUMNS, KILOBYTES = 300, 30, 200, 100, 300
EXPORTED = re.compile(r"\s*#\|\s*exports?i?\b")
HIDDEN = re.compile(r"\s*#\|\s*(hide|echo: false)\b")


def code_cells(path: Path) -> list[str]:
    "The code of a notebook, a string a cell."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def code_lines(source: str) -> list[str]:
    "Lines that are neither blank nor only a comment."
    return [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def without_panel(source: str) -> str:
    "An exported cell without its panel: a function whose name ends in `_panel`."
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_panel"):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            del lines[first - 1:node.end_lineno]
    return "\n".join(lines)


def function_sizes(source: str):
    "Each function of a cell: its name, lines of its body and syntax nodes; signature, docstring and comments do not count."
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                text = "\n".join(lines[body[0].lineno - 1:body[-1].end_lineno])
                nodes = sum(not isinstance(n, (ast.Load, ast.Store)) for part in body for n in ast.walk(part))
                yield node.name, len(code_lines(text)), nodes


def page_size(path: Path) -> dict:
    "What the limits look at: exported lines, functions over a limit, shown lines over the width; and asserts for ten exported lines."
    cells = code_cells(path)
    exported = [c for c in cells if EXPORTED.match(c)]
    lessons = [c for c in cells if not EXPORTED.match(c)]
    lines = sum(len(code_lines(without_panel(c))) for c in exported)
    over = [f for c in exported for f in function_sizes(c) if f[1] > BODY or f[2] > NODES]
    shown = [c for c in cells if EXPORTED.match(c) or not HIDDEN.match(c)]
    wide = sum(len(line) > COLUMNS for c in shown for line in c.splitlines())
    asserts = sum(isinstance(n, ast.Assert) for c in lessons for n in ast.walk(ast.parse(c)))
    return dict(lines=lines, functions=len(over), wide=wide, over=over, asserts=asserts, cells=len(exported), kb=round(path.stat().st_size / 1024))


def page_name(path: Path) -> str:
    "A notebook as `room/page`."
    return str(path.relative_to(NOTEBOOKS).with_suffix(""))


def pages() -> list[Path]:
    "All notebooks, by path."
    return sorted(p for p in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def excess(size: dict) -> dict:
    "What of a page's size exceeds a limit."
    limits = dict(lines=LINES, functions=0, wide=0)
    return {key: size[key] for key in limits if size[key] > limits[key]}


def size_table() -> str:
    "Every page's numbers, one row a page."
    rows = [f"{'page':34}{'lines':>7}{'cells':>7}{'asserts':>9}{'a ten lines':>13}{'functions over':>16}{'wide lines':>12}{'KB':>6}"]
    for path in pages():
        size = page_size(path)
        share = f"{10 * size['asserts'] / size['lines']:.1f}" if size["lines"] else ""
        rows.append(f"{page_name(path):34}{size['lines']:7}{size['cells']:7}{size['asserts']:9}{share:>13}{size['functions']:16}{size['wide']:12}{size['kb']:6}")
    return "\n".join(rows)


def ruff(*arguments: str) -> str:
    "What ruff has to say, empty when it is content."
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=ROOT, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def format_faults() -> list[str]:
    "Notebooks that are not formatted."
    return [line for line in ruff("format", "--check", "nbs").splitlines() if line.startswith(("Would", "error"))]


def name_faults() -> list[str]:
    "Imports that nothing uses, names defined twice or not at all, in the modules; pandas is loaded where it is used, and named in annotations."
    ask = ["check", "--isolated", "--select", "F401,F811,F821", "--config", 'builtins=["pandas"]', "--config", 'include=["tokenscope/**/*.py"]', "--output-format", "concise", "tokenscope"]
    return [line for line in ruff(*ask).splitlines() if re.search(r" F\d+ ", line)]


def homeless() -> list[str]:
    "Notebooks that are exported into a folder that is no room and no family, or into another than their own."
    from tokenscope.app.cards import FAMILIES
    from tokenscope.app.house import ROOMS
    wrong = []
    for path in pages():
        target = re.search(r"^#\|\s*default_exp\s+(\S+)", "\n".join(code_cells(path)), re.M)
        if not target:
            continue
        room, name = target[1].split(".")[0], page_name(path)
        if room not in (*ROOMS, *FAMILIES):
            wrong.append(f"nbs/{name}.ipynb is exported into {room!r}, which is no room; there are {', '.join((*ROOMS, *FAMILIES))}")
        elif target[1].replace(".", "/") != name:
            wrong.append(f"nbs/{name}.ipynb is exported as {target[1]}, which belongs into nbs/{target[1].replace('.', '/')}.ipynb")
    return wrong


def upward() -> list[str]:
    "Imports that run upward. A package that has one may not load, so the functions that find them are taken from their source."
    wanted = {"ROOMS", "module_imports", "upward_imports"}
    parts = ast.parse((PACKAGE / "app/house.py").read_text(encoding="utf-8")).body
    body = [n for n in parts if getattr(n, "name", None) in wanted or (isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) in wanted)]
    space = {"ast": ast, "Path": Path}
    exec(compile(ast.Module(body, []), "tokenscope/app/house.py", "exec"), space)
    return space["upward_imports"](PACKAGE)


def disorder() -> list[str]:
    "Everything that is not in order, a sentence each; with an import that runs upward the rest is not asked, for the package may not load."
    if wrong := upward():
        return wrong
    return [*format_faults(), *homeless(), *name_faults()]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--sizes" in sys.argv:
        print(size_table())
        print({page_name(p): e for p in pages() if (e := excess(page_size(p)))})
    elif wrong := disorder():
        sys.exit("The house is not in order:\n" + "\n".join(wrong))
