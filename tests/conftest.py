"""Fixtures that several test files share, the order in which tests run, and what they cost.

With two workers the longest come first (`durations.json` has estimates in processor seconds; `TOKENSCOPE_DURATIONS=1 make test` writes it again).
`TOKENSCOPE_SHUFFLE=3` runs pages and files in a random order instead. A page that takes more than 60 processor seconds fails the run, and so
do a technique's tests of more than 30."""
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
# Pages and tests of techniques from before these limits, with what they may take on a busy machine. A list that only shrinks.
SLOWER = {
    "guides/compose.ipynb": 400, "change/steering_bench.ipynb": 300, "steering/neural_foxp2.ipynb": 300, "steering/langfir.ipynb": 240,
    "steering/clas_bench.ipynb": 240, "steering/zerotuning.ipynb": 200, "measure/attribution.ipynb": 150, "app/tour.ipynb": 120,
    "clas_bench": 110, "counting_readout": 90, "step_sae": 60, "tokenizer_betrayal": 60, "mixing_mechanisms": 60, "langfir": 60, "struct_transform": 60,
    "neural_foxp2": 60, "lmtraj": 60, "hierarchical_ar": 60, "lexinvariant": 60, "charbench": 60, "needle_threading": 60, "triadic_suffix": 60,
    "tokenization_counts": 60, "rlvr_geometry": 60, "grains": 60, "glot": 60, "function_tokens": 60,
}
SITE = ("test_docs", "test_site")  # files that share the built site


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


# Pages and test files that have not been run since the rooms were rebuilt. They run, and a failure is shown as one that was expected.
# A list that only shrinks: a group that has passed leaves it.
PENDING = {
    "change/adapters.ipynb", "change/answers.ipynb", "change/composition.ipynb", "change/contrasts.ipynb", "change/control_vectors.ipynb",
    "change/directions.ipynb", "change/edit_files.ipynb", "change/moves.ipynb", "change/steering_bench.ipynb", "corpus/checkpoints.ipynb",
    "corpus/corpus.ipynb", "corpus/shards.ipynb", "corpus/token_counts.ipynb", "data/books.ipynb", "data/cuts.ipynb",
    "data/declaration.ipynb", "data/haystacks.ipynb", "data/hub.ipynb", "data/index.ipynb", "data/languages.ipynb",
    "data/needle_answers.ipynb", "data/needles.ipynb", "data/tokenizer_catalogue.ipynb", "decoding/index.ipynb",
    "guides/compose.ipynb", "guides/errors.ipynb", "guides/save_and_share.ipynb", "guides/speed.ipynb",
    "learn/adders.ipynb", "learn/binding.ipynb", "learn/small_models.ipynb", "learn/steps.ipynb", "learn/tuned_pairs.ipynb",
    "learn/walkers.ipynb", "lenses/counting_readout.ipynb", "lenses/function_tokens.ipynb", "lenses/glot.ipynb", "lenses/index.ipynb",
    "lenses/mixing_mechanisms.ipynb", "lenses/needle_threading.ipynb", "lenses/rlvr_geometry.ipynb", "lenses/step_sae.ipynb",
    "measure/byte_scores.ipynb", "measure/claims.ipynb", "measure/collected_claims.ipynb", "measure/diagnosis.ipynb",
    "measure/intervals.ipynb", "measure/language_mass.ipynb", "measure/paths.ipynb", "measure/probes.ipynb", "measure/sae_training.ipynb",
    "measure/slow_cells.ipynb", "measure/spectra.ipynb", "measure/units.ipynb", "pruning/index.ipynb", "routing/index.ipynb", "site",
    "steering/austeer.ipynb", "steering/clas_bench.ipynb", "steering/grains.ipynb", "steering/index.ipynb", "steering/neural_foxp2.ipynb",
    "steering/struct_transform.ipynb", "test_adapters", "test_austeer", "test_charbench", "test_check", "test_checkpoints", "test_claims",
    "test_commands", "test_containers", "test_corpus", "test_counting_readout", "test_cuts", "test_data", "test_directions", "test_display",
    "test_edit_files", "test_explore", "test_fetch", "test_function_tokens", "test_glot", "test_grains", "test_haystacks",
    "test_hierarchical_ar", "test_lab", "test_langfir", "test_latent_lens", "test_lexinvariant", "test_lmtraj", "test_moves_and_contrasts",
    "test_needle_threading", "test_numbers", "test_panels", "test_rlvr_geometry", "test_sae", "test_sae_files", "test_slow_cells",
    "test_steering_bench", "test_step_sae", "test_struct_transform", "test_texts", "test_tokenization_counts", "test_tokenizer_betrayal",
    "test_tokens", "test_tour", "test_triadic_suffix", "test_twin", "test_zerotuning", "text/batch.ipynb", "text/containers.ipynb",
    "text/encodings.ipynb", "text/fetch.ipynb", "text/index.ipynb", "text/names.ipynb", "text/numbers.ipynb", "text/texts.ipynb",
    "text/tokens.ipynb", "text/words.ipynb", "tokenizers/charbench.ipynb", "tokenizers/hierarchical_ar.ipynb", "tokenizers/index.ipynb",
    "tokenizers/lexinvariant.ipynb", "tokenizers/lmtraj.ipynb", "tokenizers/tokenization_counts.ipynb",
    "tokenizers/tokenizer_betrayal.ipynb", "tokenizers/triadic_suffix.ipynb", "training/index.ipynb",
}


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
        if group_of(item.nodeid) in PENDING:
            item.add_marker(pytest.mark.xfail(strict=False, reason="not run since the rooms were rebuilt"))
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
        item.user_properties.append(("cost", (group_of(item.nodeid), processor_seconds() - item.processor_start)))
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
        pages = [f"the page {g} took {s:.0f} processor seconds, of at most {PAGE_SECONDS}" for g, s in self.groups.items() if "/" in g and g not in PENDING and s > SLOWER.get(g, PAGE_SECONDS)]
        tests = [f"the tests of {t} took {s:.0f} processor seconds, of at most {TEST_SECONDS}" for t, s in self.techniques.items() if s > SLOWER.get(t, TEST_SECONDS)]
        return pages + tests

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
