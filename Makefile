# Two commands do everything on a bare machine: `make run` and `make test`. They need Python >= 3.11, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TAG ?= demo
TRIALS ?= 9
BUDGET ?= 1e12flop
RESULTS := benchmarks/results

.PHONY: run test slow check bench bench-optim bench-search attack clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: expected Python >= 3.11, found " + sys.version.split()[0] + "; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/examples: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[examples]'
	touch $@

run: $(VENV)/installed  ## set up, make the data, run a short offline session, plot it
	$(BIN)/python prepare.py
	$(BIN)/overnight run --tag $(TAG) --proposer knobs --judge greedy --budget $(BUDGET) --experiments $(TRIALS)
	$(BIN)/overnight replay $(TAG) --plot progress.png

test: $(VENV)/installed  ## everything but what is slow, needs a GPU or spends money
	$(BIN)/python -m pytest -q -n 2 -m 'not slow and not gpu and not paid'

slow: $(VENV)/examples  ## what `make test` leaves out to stay short
	$(BIN)/python -m pytest -q -n 2 -m 'slow and not gpu and not paid'

check: $(VENV)/installed  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

attack: $(VENV)/installed  ## everything that must not come through, on every level, as a table
	$(BIN)/python -m tests.attacks

bench: $(VENV)/installed  ## the quick form of the benchmarks that take minutes
	$(BIN)/python benchmarks/preflight.py --quick
	$(BIN)/python benchmarks/check_edits.py
	$(BIN)/python benchmarks/kill_tree.py --quick
	$(BIN)/python -m benchmarks.train_bars --quick

bench-optim: $(VENV)/installed  ## the quick form of the benchmarks of optimizers; the last needs data that `make run` prepares
	$(BIN)/python -m benchmarks.optim_shift --quick
	$(BIN)/python -m benchmarks.optim_forgetting --quick
	$(BIN)/python -m benchmarks.optim_adaptive --quick
	$(BIN)/python -m benchmarks.optim_speed --quick
	$(BIN)/python -m benchmarks.optim_trainer --quick

bench-search: $(VENV)/examples  ## tables and plots of judges and searches again, from recorded trials: half an hour
	$(BIN)/python -m benchmarks.search.judge --json $(RESULTS)/search_judge.json --plot docs/img/search_judge.png
	$(BIN)/python -m benchmarks.search.surrogate --json $(RESULTS)/search_surrogate.json
	$(BIN)/python -m benchmarks.search.prune --json $(RESULTS)/search_prune.json
	$(BIN)/python -m benchmarks.search.compare --json $(RESULTS)/search_compare.json --plot docs/img/search_compare.png
	$(BIN)/python -m benchmarks.search.sessions --json $(RESULTS)/search_sessions.json

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
