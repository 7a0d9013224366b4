"Every snippet of a section On your own model stands by itself; with TOKENSCOPE_SLOW=1 each also runs as written."
import ast
import importlib
import json
import os
import re
import subprocess
import sys

import pytest

from notebooks import ROOT
from tokenscope.app.gallery import cards

# What a reader puts in place of a placeholder; here it is what the package itself has.
STAND_INS = {
    'load("your/model")': "load()",
    '"your/base", "your/tuned"': "*pair",
    'load_saelens("folder/of/one/autoencoder")': "default_sae(scope)",
}
BEFORE = {
    "rlvr_geometry": "from tokenscope.learn.shipped import SHIPPED\npair = SHIPPED['rlvr_base'].path, SHIPPED['rlvr_sft'].path\n",
    "langfir": "from tokenscope.measure.sae import default_sae\n",
    "lmtraj": "tracks = [f'{10 * t}\\t{p}\\t{0.3 * t + p:.2f}\\t{0.1 * t:.2f}' for t in range(20) for p in range(2)]\n"
    "open('zara01.txt', 'w').write('\\n'.join(tracks))\n",
}


def snippets(card) -> list[str]:
    "The Python blocks of a page's section On your own model."
    path = ROOT / "nbs" / card["family"] / f"{card['slug']}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    section = re.search(r"^## On your own model$(.*?)^## ", text, re.M | re.S)[1]
    return re.findall(r"```python\n(.*?)```", section, re.S)


def whole_snippet(card) -> str:
    "A page's snippet with what the package has in place of the placeholders."
    blocks = snippets(card)
    if not blocks:
        pytest.skip("the section runs its code in a cell of the page")
    code = BEFORE.get(card["slug"], "") + "\n".join(blocks)
    for placeholder, stand_in in STAND_INS.items():
        code = code.replace(placeholder, stand_in)
    assert "your/" not in code and '"…"' not in code, "a reader pastes it as it stands"
    return code


@pytest.mark.parametrize("card", cards(), ids=lambda card: card["slug"])
def test_snippet_names_everything_it_uses(card):
    code = whole_snippet(card)
    assert max(map(len, code.splitlines())) <= 100 or card["slug"] in BEFORE
    done = subprocess.run([sys.executable, "-m", "pyflakes"], input=code, capture_output=True, text=True)
    assert "undefined name" not in done.stdout, done.stdout
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("tokenscope"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.skipif(not os.environ.get("TOKENSCOPE_SLOW"), reason="slow: set TOKENSCOPE_SLOW=1")
@pytest.mark.model
@pytest.mark.parametrize("card", cards(), ids=lambda card: card["slug"])
def test_snippet_runs_as_written(card, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", whole_snippet(card)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    if card["slug"] == "clas_bench":
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
        judge = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        judge.set_languages(["en", "es", "fr", "de", "it", "pt"])
        assert judge.classify(done.stdout)[0] == "es", done.stdout
