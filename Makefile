# The two commands:
#   make train   sets the machine up, then trains Pong with the local workers until done or Ctrl-C
#   make test    sets the machine up for tests, then runs the linters and all tests
# A second call skips what stands. TRAIN_FLAGS adds flags to the training run:
#   make train TRAIN_FLAGS="--level_name=BreakoutNoFrameskip-v4"
# And for those who work on it: make bench measures each part against what the machine allows.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
TRAIN_FLAGS ?=
TEST_FLAGS ?=
BENCH_FLAGS ?=

.PHONY: train setup test test-fast setup-test lint bench clean

train: setup
	$(PYTHON) run_experiment_mm_raw.py --follow \
	  --workers_csv_path=sandbox/local_workers_example.csv \
	  --preset=atari_fast --level_name=PongNoFrameskip-v4 $(TRAIN_FLAGS)

setup:
	@VENV="$(abspath $(VENV))" docker/setup.sh train

setup-test:
	@VENV="$(abspath $(VENV))" docker/setup.sh test

test: setup-test lint
	$(PYTHON) -m pytest $(TEST_FLAGS)

test-fast: setup-test
	$(PYTHON) -m pytest -m "not slow" $(TEST_FLAGS)

lint: setup-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: setup
	$(PYTHON) sandbox/benchmarks/bench.py $(BENCH_FLAGS)

clean:
	rm -rf "$(VENV)" .mypy_cache .ruff_cache .pytest_cache
