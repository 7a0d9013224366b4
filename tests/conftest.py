"""Fixtures that several test files share, the order in which tests run, and what they cost.

With two workers the longest come first (`durations.json` has estimates in processor seconds; `TOKENSCOPE_DURATIONS=1 make test` writes it again).
`TOKENSCOPE_SHUFFLE=3` runs pages and files in a random order instead. A page that takes more than 60 processor seconds fails the run, and so
do a technique's tests of more than 30."""
import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from notebooks import ROOT

DURATIONS = Path(__file__).with_name("durations.json")
PAGE_SECONDS, TEST_SECONDS, UNKNOWN = 60, 30, 20
BUSY = 1.5  # how much more a busy machine may take than was measured
# What was measured above its limit, or close below it, in processor seconds with both cores at work. A list that only shrinks.
SLOWER = {
    "steering/zerotuning.ipynb": 51, "steering/struct_transform.ipynb": 51, "measure/attribution.ipynb": 49, "measure/sae_texts.ipynb": 49,
    "lenses/counting_readout.ipynb": 47,
    "langfir": 44, "tokenizer_betrayal": 36, "rlvr_geometry": 35, "latent_lens": 32, "clas_bench": 31, "zerotuning": 29, "triadic_suffix": 28,
    "hierarchical_ar": 27, "lmtraj": 26,
}
SITE = ("test_docs", "test_site")  # files that share the built site


@pytest.fixture(autouse=True)
def no_loop(request):
    "Playwright leaves its event loop in the thread that runs the tests; a live panel that sees one waits for it, for good."
    if "chromium" in request.fixturenames:
        yield
        return
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The documentation site, built once, as `make docs` builds it."
    done = subprocess.run([sys.executable, str(ROOT / "nbs/build_docs.py")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return ROOT / "_docs"


def group_of(nodeid: str) -> str:
    "What runs in one worker, one after another: a page, a test file, or all that reads the site."
    path, _, name = nodeid.partition("::")
    stem = Path(path).stem
    if stem == "test_notebooks":
        return name.partition("[")[2].removesuffix("]")
    return "site" if stem in SITE else stem


def recorded() -> dict[str, float]:
    "Processor seconds of each group, estimated until a run with TOKENSCOPE_DURATIONS writes them."
    return json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.exists() else {}


def limit(name: str, usual: int) -> float:
    "What a page or a technique's tests may take."
    return max(usual, BUSY * SLOWER.get(name, 0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Hand out whole groups. The way of pytest-xdist 3.8, a marker written into a test's id, is lost in pytest 9.2."
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "One worker for all tests of a group; the longest group first, or any order that is asked for."
    seconds = recorded()
    for item in items:
        if group_of(item.nodeid) == "site" and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))
    if seed := os.environ.get("TOKENSCOPE_SHUFFLE"):
        groups = sorted({group_of(item.nodeid) for item in items})
        random.Random(int(seed)).shuffle(groups)
        items.sort(key=lambda item: groups.index(group_of(item.nodeid)))
    else:
        items.sort(key=lambda item: (-seconds.get(group_of(item.nodeid), UNKNOWN), group_of(item.nodeid)))


def processor_seconds() -> float:
    "User and system time of this process and of the children that have ended."
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    item.processor_start = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":
        seconds = processor_seconds() - item.processor_start + getattr(item, "kernel_seconds", 0)
        item.user_properties.append(("cost", (group_of(item.nodeid), seconds)))
    return (yield)


class Costs:
    "Processor seconds of every group, summed where the reports arrive."
    def __init__(self, slugs: set[str]):
        self.groups, self.techniques, self.slugs = Counter(), Counter(), slugs

    def pytest_runtest_logreport(self, report):
        if report.when != "teardown":
            return
        for group, seconds in (value for name, value in report.user_properties if name == "cost"):
            self.groups[group] += seconds
            for slug in self.slugs:
                if group == f"test_{slug}" or "/" not in group and re.search(rf"[\[-]{slug}[\]-]", report.nodeid):
                    self.techniques[slug] += seconds

    def faults(self) -> list[str]:
        "What took longer than a page or a technique's tests may."
        pages = [(f"the page {g}", s, limit(g, PAGE_SECONDS)) for g, s in self.groups.items() if g.endswith(".ipynb")]
        tests = [(f"the tests of {t}", s, limit(t, TEST_SECONDS)) for t, s in self.techniques.items()]
        return [f"{name} took {s:.0f} processor seconds, of at most {most:.0f}" for name, s, most in pages + tests if s > most]

    def pytest_sessionfinish(self, session):
        if self.faults() and session.exitstatus == 0:
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        pages = {g: s for g, s in self.groups.items() if g.endswith(".ipynb")}
        for title, rows in (("pages", pages), ("tests of a technique", self.techniques)):
            if rows:
                terminalreporter.section(f"processor seconds: {title}")
                for name, seconds in sorted(rows.items(), key=lambda row: -row[1]):
                    write(f"{seconds:8.1f}  {name}")
        write(f"{sum(self.groups.values()):8.1f}  processor seconds in all")
        for fault in self.faults():
            write(f"FAILED: {fault}", red=True)
        if os.environ.get("TOKENSCOPE_DURATIONS"):
            seconds = {**recorded(), **{g: round(s, 1) for g, s in self.groups.items()}}
            DURATIONS.write_text(json.dumps(dict(sorted(seconds.items())), indent=0) + "\n", encoding="utf-8")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # workers send their reports to the one that counts
        from tokenscope.app.cards import cards
        config.pluginmanager.register(Costs({card["slug"] for card in cards()}), "costs")
