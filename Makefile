# Two commands: `make demo` and `make test`. Both make .venv on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SOURCES := $(wildcard seqtrain/ops/cpu/*.cc seqtrain/ops/cpu/*.inc seqtrain/ops/cpu/*.h seqtrain/lattices/native/*.cc)
WORKDIR ?= workdir/demo
PYTEST := $(BIN)/python -m pytest -n 2
# Most of the suite's time goes into compiling. The numeric core is compiled as in use; runs, which are
# compared with each other, and what is slow do without LLVM's optimisations.
CORE   := tests/ops tests/losses
QUICK  := XLA_FLAGS="--xla_backend_optimization_level=0 $(XLA_FLAGS)"

.PHONY: demo test lint format venv slow clean

venv: $(STAMP)

$(STAMP): setup.py pyproject.toml $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[all]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python launch/train.py --config=configs/demo.py --workdir=$(WORKDIR)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	$(PYTEST) -m 'not slow' $(CORE)
	$(QUICK) $(PYTEST) -m 'not slow' tests seqtrain $(CORE:%=--ignore=%)

slow: $(STAMP)
	$(QUICK) $(PYTEST) --dist loadfile --no-loadscope-reorder --timeout 900 -m slow tests

clean:
	rm -rf $(VENV) build *.egg-info seqtrain/ops/cpu/*.so seqtrain/lattices/native/*.so
