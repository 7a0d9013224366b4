"Every error message that the package can raise has an entry in guides/errors, and no entry is orphaned."
import ast
import json
import re

from notebooks import ROOT


def opening(node) -> "str | None":
    "A message's fixed beginning, its variable parts as an ellipsis."
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # f"…".replace(…)
        node = node.func.value
    while isinstance(node, ast.BinOp):
        node = node.left
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = "".join(p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else "…" for p in parts)
    return re.split(r"[:;(.]", text)[0].strip() or None


def raised() -> dict:
    "Fixed beginnings of all messages -> where they are raised."
    found = {}
    for path in (ROOT / "tokenscope").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", "") in ("ScopeError", "BadArgument", "BadFile", "Unavailable"):
                if (key := opening(node.exc.args[0])) and key != "…":
                    found.setdefault(key, path.name)
    return found


def entries() -> set:
    cells = json.loads((ROOT / "nbs/guides/errors.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return set(re.findall(r"^#### `(.+)`$", text, re.M))


def test_every_message_has_an_entry():
    assert not {k: v for k, v in raised().items() if k not in entries()}


def test_no_entry_is_orphaned():
    assert not entries() - set(raised())
