"Every notebook runs, in a process of its own (the cells marked slow run with `make claims`)."
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks import ROOT, notebooks, run


@pytest.mark.parametrize("path", notebooks(), ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook(path, request):
    request.node.kernel_seconds = run(path)  # see conftest


def written(path, *sources: str):
    "A notebook of these cells."
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources]), path)
    return path


def test_a_page_begins_without_tokenscope_and_its_errors_are_seen(tmp_path):
    begins = "import sys\nassert 'torch' in sys.modules and not any(name.split('.')[0] == 'tokenscope' for name in sys.modules)"
    one_thread = "import os\nassert os.listdir(f'/proc/{os.getppid()}/task') == [str(os.getppid())]  # what a page is a copy of"
    assert 0 < run(written(tmp_path / "good.ipynb", begins, one_thread)) < 10
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(written(tmp_path / "bad.ipynb", "1 / 0"))
