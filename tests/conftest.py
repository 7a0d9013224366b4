"Fixtures that several test files share."
import subprocess
import sys

import pytest

from notebooks import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The documentation site, built once, as `make docs` builds it."
    done = subprocess.run([sys.executable, str(ROOT / "nbs/build_docs.py")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return ROOT / "_docs"
