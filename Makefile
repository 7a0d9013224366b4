# tokenscope. `make tour` and `make test` need nothing but Python 3.10+, git, make and the package registries.
PYTHON ?= python3
BIN := .venv/bin
TEXT ?=
export TEXT
export TOKENIZERS_PARALLELISM = false
# Outputs that are committed come from one set of weights, the same on every machine.
WHEEL := TOKENSCOPE_DEFAULT=wheel

.PHONY: tour check test lab docs claims notebooks export clean-nbs bench sae toys

tour: .venv/.run                 ## read a sentence with a real model and write tour.html  (TEXT="…")
	@$(BIN)/tokenscope tour $${TEXT:+"$$TEXT"}

check: .venv/.dev                ## for someone who changed one thing: fast tests, format and types, the notebooks that changed
	$(WHEEL) OMP_NUM_THREADS=1 $(BIN)/python tests/check.py

test: .venv/.dev                 ## every notebook and all of tests/: two workers of one thread each, the longest first
	$(WHEEL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadgroup --no-loadscope-reorder --durations=12

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
	$(BIN)/python nbs/readme.py
	$(BIN)/python nbs/citation.py
	$(BIN)/python tests/house.py

clean-nbs: .venv/.dev
	$(BIN)/nbdev-clean
	$(BIN)/python -c "from tokenscope.show.explore import clean_notebooks; clean_notebooks('nbs')"

sae: .venv/.dev                  ## fit the shipped sparse autoencoder again: three minutes on one core
	$(WHEEL) OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope import load; from tokenscope.measure.sae_texts import make_default_sae; make_default_sae(load(), 'tokenscope/shipped/sae_smollm2_layer14.safetensors')"

TOYS := toy-binding toy-drift toy-threads toy-steps toy-adders toy-rewriter toy-spellers toy-lexinvariant toy-walkers toy-hat
.PHONY: $(TOYS)
toys: $(TOYS)                    ## train the shipped small models again: `make -j2 toys` takes an hour on two cores, no part more than half an hour
$(TOYS): .venv/.dev
toy-binding:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.learn.binding import train_binding_toy; train_binding_toy('tokenscope/shipped/binding_toy.safetensors')"
toy-drift:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.learn.tuned_pairs import train_drift_pair; train_drift_pair('tokenscope/shipped')"
toy-threads:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.lenses.needle_threading import train_thread_toy; train_thread_toy('tokenscope/shipped/thread_toy.safetensors')"
toy-steps:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.lenses.step_sae import make_step_sae_toys; make_step_sae_toys('tokenscope/shipped')"
toy-adders:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.learn.adders import train_adders; train_adders('tokenscope/shipped')"
toy-rewriter:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.learn.adders import train_rewriter; train_rewriter('tokenscope/shipped/rewrite_adder.safetensors')"
toy-spellers:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.tokenizers.charbench import train_spellers; train_spellers('tokenscope/shipped')"
toy-lexinvariant:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.tokenizers.lexinvariant import make_lexinvariant_toys; make_lexinvariant_toys('tokenscope/shipped')"
toy-walkers:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.tokenizers.lmtraj import train_walker_lms; train_walker_lms('tokenscope/shipped')"
toy-hat:
	OMP_NUM_THREADS=1 $(BIN)/python -c "from tokenscope.tokenizers.hierarchical_ar import TOYS, train_toy; [train_toy(name, f'tokenscope/shipped/hat_{name.lower()}.safetensors') for name in TOYS]"

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
