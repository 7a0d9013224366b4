"Slow cells say so and are skipped, whoever runs the page."
import subprocess
import sys

import nbformat
import pytest

from notebooks import ROOT, flagged, notebooks


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_a_page_with_slow_cells_skips_them(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    slow = [i for i, c in enumerate(cells) if flagged(c, "slow")]
    if slow:
        assert any("skip_slow_cells()" in c.source for c in cells[:slow[0]]), "call skip_slow_cells() before the first slow cell"


@pytest.mark.parametrize("variable, wanted", [(None, "A slow cell, skipped"), ("1", "ran")])
def test_nbconvert_skips_slow_cells_unless_asked(tmp_path, monkeypatch, variable, wanted):
    monkeypatch.delenv("TOKENSCOPE_SLOW", raising=False)
    if variable:
        monkeypatch.setenv("TOKENSCOPE_SLOW", variable)
    sources = ["from tokenscope.measure.slow_cells import skip_slow_cells\nskip_slow_cells()\nskip_slow_cells()", "#| hide\n#| slow\nprint('ran')", "#| export\nprint('always')"]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    page.metadata["kernelspec"] = {"name": "python3", "display_name": "python3"}
    nbformat.write(page, tmp_path / "page.ipynb")
    ask = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "run.ipynb", str(tmp_path / "page.ipynb")]
    done = subprocess.run(ask, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    texts = [c.outputs[0].text for c in nbformat.read(tmp_path / "run.ipynb", as_version=4).cells[1:]]
    assert wanted in texts[0] and texts[1] == "always\n"
