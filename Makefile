# make run    the whole platform on phantoms, in one command
# make test   the environment, ruff, mypy and the tests; WORKERS=1 for one process, or as many as there are cores
WORKERS ?= 2
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.PHONY: help install page run test test-slow test-faults test-cluster bench lint docs clean
help:
	@grep -E '^# make' Makefile | cut -c3-

install: $(STAMP)
$(STAMP): constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it or name it by PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(MAKE) --no-print-directory page
	touch $@

# make page   the page's viewer of volumes, and /docs: needs Node.js, without it the server draws slices
page:
	@if ! command -v npm >/dev/null; then \
		echo "Node.js is not here, so the service's page will show slices that the server draws (make page builds its viewer)"; \
	elif ! (cd serve/page && npm ci --silent && npm run --silent build); then \
		echo "the viewer was not built, so the service's page will show slices that the server draws (make page tries again)"; \
	fi

run: $(STAMP)
	$(BIN)/python platform/demo.py

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# make test-slow   all that takes minutes: the known posterior of phantoms, and what the two below test
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# make test-faults   searches and samplers whose processes are killed, whose disk is full: about forty minutes
test-faults: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/orchestration tests/serve

# make test-cluster   `ray up cluster.yaml && python platform/tune.py` on hosts made of namespaces: root, some minutes
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m slow -s tests/operations/cluster

# make bench   what it costs on the processors of this machine, in tables: 9 minutes of two quiet cores
bench: $(STAMP)
	$(BIN)/python benchmarks/speed/posterior.py --device cpu --laws
	$(BIN)/python benchmarks/speed/training.py --device cpu --steps 2
	$(BIN)/python benchmarks/speed/export.py --repeat 1 --size 192
	$(BIN)/python benchmarks/speed/against_monai.py --device cpu
	$(BIN)/python benchmarks/service.py

# make lint   ruff and mypy
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make docs   the documentation as a site, into site/: every link must lead somewhere
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) serve/page/dist serve/page/node_modules runs .pytest_cache .mypy_cache .ruff_cache
