"What a type checker and completion see: every attribute that the package uses on its own classes."
import ast
import re
import subprocess
import sys

import jedi
import pytest

from notebooks import ROOT

sys.path.insert(0, str(ROOT / "nbs"))
from stubs import stubs

CONFIG = """[mypy]
ignore_missing_imports = True
check_untyped_defs = True
follow_imports = skip
[mypy-tokenscope.*]
follow_imports = normal
"""
CLASSES = {node.name for path in (ROOT / "tokenscope").rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)}


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    "A function that runs mypy on the package or a file, without looking into other packages, and gives its lines on missing attributes."
    folder = tmp_path_factory.mktemp("mypy")
    (folder / "mypy.ini").write_text(CONFIG)

    def check(*what: str) -> list[str]:
        ask = [sys.executable, "-m", "mypy", "--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache"), *what]
        done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
        return [line for line in done.stdout.splitlines() if line.endswith("[attr-defined]")]
    return check


def test_our_classes_have_the_attributes_that_are_used(mypy):
    missing = []
    for line in mypy("-p", "tokenscope"):
        name = re.search(r'"(?:type\[)?(\w+)\]?" has no attribute', line)
        if name and name[1] in CLASSES:
            missing.append(line)
    assert not missing, "\n".join(missing)


def test_a_script_of_a_user_passes_and_a_slip_in_it_is_seen(mypy, tmp_path):
    script = tmp_path / "script.py"
    script.write_text('from tokenscope import load\nscope = load()\nprint(scope.generate("a"), scope.encode("a"), scope.surprisal("a").html())\nscope.generatte("a")\n')
    seen = [line for line in mypy(str(script)) if "script.py" in line]
    assert len(seen) == 1 and '"Scope" has no attribute "generatte"' in seen[0]


@pytest.mark.parametrize("start, wanted", [
    ("load().", {"generate", "encode", "logits", "read", "edit", "surprisal", "n_layers"}),
    ("load().surprisal('a').", {"html", "to_df", "figure", "words"}),
])
def test_completion_knows_the_methods(start, wanted):
    code = f"from tokenscope import load\n{start}"
    names = {c.name for c in jedi.Script(code, project=jedi.Project(ROOT)).complete(2, len(start))}
    assert wanted <= names


def test_the_lazy_table_and_the_typed_one_are_the_same():
    source = (ROOT / "tokenscope/__init__.py").read_text(encoding="utf-8")
    block = next(n for n in ast.parse(source).body if isinstance(n, ast.If))
    typed = {alias.asname: node.module.removeprefix("tokenscope.") for node in block.body for alias in node.names}
    import tokenscope
    assert typed == tokenscope._where


def test_stubs_are_in_step_with_the_modules():
    there = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tokenscope").rglob("*.pyi")}
    assert there == stubs(), "run `make export`"
