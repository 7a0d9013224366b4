"""`make check`: in three minutes, for someone who changed one thing. Fast tests, format and types, modules in step, contracts of what changed, and the
notebooks that changed against the branch `main`. Nothing here opens a browser."""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS = ("test_house", "test_types", "test_modules", "test_errors")  # format, limits, types, modules in step, the errors' guide
NEVER = ("test_notebooks", "test_docs", "test_site", "test_lab", "test_twin", "test_package")
BUDGET = 150  # processor seconds for test files that nobody touched, the fastest first


class NoCheckout(SystemExit):
    "What `make check` says where there is nothing to compare with."


def git(root: Path, *arguments: str) -> str:
    "What git answers, or an error in words."
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoCheckout("make check asks git what changed, and there is no git on this machine. Run `make test`, which runs everything.") from None
    if done.returncode:
        raise NoCheckout(f"make check asks git what changed against the branch `main`, and git says: {done.stderr.strip()}\nRun `make test`, which runs everything.")
    return done.stdout


def changed(root: Path = ROOT) -> set[Path]:
    "Files that differ from the branch `main`: committed, not committed yet, or new."
    git(root, "rev-parse", "--show-toplevel")
    known = git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/remotes").split()
    base = next((name for name in ("main", "origin/main") if name in known), None)
    if base is None:
        raise NoCheckout("make check compares with the branch `main`, and this checkout has none: fetch it, or run `make test`.")
    names = git(root, "diff", "--name-only", f"{base}...") + git(root, "diff", "--name-only", "HEAD") + git(root, "ls-files", "--others", "--exclude-standard")
    return {root / name for name in names.splitlines() if (root / name).exists()}


def chosen(paths: set[Path], seconds: dict[str, float], root: Path = ROOT) -> tuple[list[str], list[str]]:
    "What pytest is asked to run (changed notebooks, their tests, what is always run, the fastest of the rest), and pages whose contracts are to be run."
    stems = {p.stem for p in paths}
    files = [p.stem for p in sorted((root / "tests").glob("test_*.py")) if p.stem not in NEVER]
    first = [n for n in files if n in ALWAYS or n in stems or n.removeprefix("test_") in stems]
    rest, spent = [], 0.0
    for name in sorted(set(files) - set(first), key=lambda n: (seconds.get(n, 5.0), n)):
        spent += seconds.get(name, 5.0)
        if spent <= BUDGET:
            rest.append(name)
    pages = sorted(p.relative_to(root / "nbs") for p in paths if p.suffix == ".ipynb" and root / "nbs" in p.parents)
    asked = [f"tests/test_notebooks.py::test_notebook[{page}]" for page in pages] + [f"tests/{name}.py" for name in first + rest]
    return asked, [] if "test_contract" in first + rest else [page.stem for page in pages]


def main() -> int:
    "Run them with two workers."
    file = ROOT / "tests/durations.json"
    asked, contracts = chosen(changed(), json.loads(file.read_text(encoding="utf-8")) if file.exists() else {})
    run = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder", "--durations=5"]
    code = subprocess.run([*run, *asked], cwd=ROOT).returncode
    if contracts:  # all contracts take longer than three minutes: here those of the pages that changed
        other = subprocess.run([*run, "tests/test_contract.py", "-k", " or ".join(contracts)], cwd=ROOT).returncode
        code = code or (0 if other == 5 else other)  # 5: no contract is about these pages
    return code


if __name__ == "__main__":
    sys.exit(main())
