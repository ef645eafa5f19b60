# Set-up, demo and tests. Every target makes .venv first where it is missing or older than the pins.
PYTHON ?= python3
UV := uv==0.13.9
BIN := .venv/bin
INSTALLED := .venv/.installed

# DeepSpeed would compile its kernels while it installs; training uses none of them.
export DS_BUILD_OPS := 0

# A worker that dies ends the tests at once; what waits for it would wait for ever.
WORKERS := -n 2 --dist loadfile --max-worker-restart 0

.PHONY: venv demo test test-avx2 test-long test-export test-soak fuzz coverage check style lock

venv: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: name one, for example" \
			"make PYTHON=python3.12 $(or $(MAKECMDGOALS),venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -r requirements.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m launch.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long and not soak and not export" $(WORKERS)

# Bits depend on the processor's instructions: what the codec does on one without AVX-512, on any that has it.
test-avx2: $(INSTALLED)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(BIN)/python -m pytest \
		tests/preprocess/codec/test_load.py tests/preprocess/codec/test_fast_encode.py $(WORKERS)

test-long: $(INSTALLED) .venv/.optional
	$(BIN)/python -m pytest -m long $(WORKERS)

# Converted bases beside transformers 5's own classes, which do not fit into .venv.
test-export: $(INSTALLED) .venv-export/.installed
	$(BIN)/python -m pytest -m export

.venv-export/.installed: requirements-export.txt
	$(PYTHON) -m venv .venv-export
	$(BIN)/uv pip install --python .venv-export/bin/python --no-deps -r requirements-export.txt
	touch $@

# Random faults over a training and a corpus: SOAK_FAULTS of each (30 and 100), by SOAK_SEED.
test-soak: $(INSTALLED) .venv/.optional
	$(BIN)/python -m pytest -m soak -s tests/test_soak.py

# The property tests with other examples, ROUNDS times (about two minutes each).
ROUNDS ?= 30
fuzz: $(INSTALLED)
	for round in $$(seq $(ROUNDS)); do HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q -m "not long and not soak and not export" \
		$(WORKERS) $$(grep -rl "from hypothesis" tests --include='test_*.py') || exit 1; done

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long and not soak and not export" $(WORKERS) --cov --cov-report=term:skip-covered

.venv/.optional: $(INSTALLED) requirements-cluster.txt requirements-wandb.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps -r requirements-cluster.txt -r requirements-wandb.txt
	touch $@

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

style: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock"

lock: $(INSTALLED)
	$(COMPILE) pyproject.toml --extra dev -o requirements.txt
	$(COMPILE) --group cluster -c requirements.txt -o requirements-cluster.txt
	$(COMPILE) --group wandb -c requirements.txt -o requirements-wandb.txt
