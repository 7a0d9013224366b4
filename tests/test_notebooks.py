"Every notebook runs, in a process of its own (the cells marked slow run with `make claims`)."
import pytest

from notebooks import ROOT, notebooks, run


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook(path):
    run(path)
