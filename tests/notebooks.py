"Run notebooks, each in a fresh process: to test them, or to save their outputs."
import argparse
import copy
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from warm import WarmKernels

ROOT = Path(__file__).resolve().parent.parent


def notebooks() -> list[Path]:
    "All notebooks of the package, by path."
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def flagged(cell, flag: str) -> bool:
    "Does a code cell carry a directive, such as `#| slow`?"
    head = [line.strip() for line in cell.source.splitlines() if line.startswith("#|")]
    return cell.cell_type == "code" and any(line.removeprefix("#|").strip() == flag for line in head)


def run(path: Path, slow: bool = False, save: bool = False) -> float:
    """Run a notebook's cells, without the slow ones unless asked; return the processor seconds of its process and of those it started.

    Saving keeps the outputs of what was not run, and begins with an empty process as a reader does; a test begins with torch imported."""
    whole = nbformat.read(path, as_version=4)
    part = copy.copy(whole)
    part.cells = [c for c in whole.cells if slow or not (flagged(c, "slow") or flagged(c, "eval: false"))]
    part.cells.append(nbformat.v4.new_code_cell("import os\nprint(sum(os.times()[:4]))"))
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ.setdefault("TOKENSCOPE_SAVED_FRAMES", "all")  # a panel computes every setting
    if slow:
        os.environ["TOKENSCOPE_SLOW"] = "1"  # see measure/slow_cells
    with tempfile.TemporaryDirectory() as elsewhere:  # what a cell writes must not change the tree
        where = str(path.parent) if save else elsewhere
        manager = AsyncKernelManager if save else WarmKernels
        # A cell of a page must not hang a run; an experiment may take what it takes.
        NotebookClient(part, timeout=None if slow else 1800, kernel_name="python3", kernel_manager_class=manager,
                       resources={"metadata": {"path": where}}).execute()
    if save:
        nbformat.write(whole, path)
    return float(part.cells[-1].outputs[0].text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--slow", action="store_true")
    asked = parser.parse_args()
    for path in asked.paths or notebooks():
        print(f"{path.resolve().relative_to(ROOT)}: {run(path.resolve(), asked.slow, asked.save):.0f} processor seconds", file=sys.stderr, flush=True)
