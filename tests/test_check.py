"`make check` picks what a change needs, and says why it cannot where there is no git checkout."
import subprocess

import pytest

from check import ALWAYS, BUDGET, NoCheckout, changed, chosen


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    "A small checkout with two pages, three test files and a branch that changed one page."
    for name in ("nbs/text/names.ipynb", "nbs/steering/new.ipynb", *(f"tests/{n}.py" for n in (*ALWAYS, "test_names", "test_quick", "test_long"))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    git(tmp_path, "init", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "switch", "-c", "mine")
    (tmp_path / "nbs/text/names.ipynb").write_text("{ }")
    git(tmp_path, "commit", "-am", "a change")
    return tmp_path


def test_what_changed_is_committed_or_not_or_new(checkout):
    (checkout / "nbs/steering/new.ipynb").write_text("[]")
    (checkout / "tests/test_other.py").write_text("")
    assert {p.name for p in changed(checkout)} == {"names.ipynb", "new.ipynb", "test_other.py"}


def test_changed_pages_their_tests_and_fast_ones_run(checkout):
    asked, contracts = chosen(changed(checkout), {"test_quick": 2, "test_long": BUDGET}, checkout)
    assert asked[0] == "tests/test_notebooks.py::test_notebook[text/names.ipynb]" and contracts == ["names"]
    assert {"tests/test_names.py", "tests/test_quick.py", *(f"tests/{n}.py" for n in ALWAYS)} == set(asked[1:])


def test_outside_of_a_checkout_it_says_what_to_do(tmp_path):
    with pytest.raises(NoCheckout, match="not a git repository.*\\n?.*make test"):
        changed(tmp_path)


def test_a_checkout_without_main_is_named(checkout):
    git(checkout, "branch", "-D", "main")
    with pytest.raises(NoCheckout, match="has none: fetch it, or run `make test`"):
        changed(checkout)
