# Two commands: `make demo` and `make test`. Both make .venv on first use.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKDIR ?= workdir/demo

.PHONY: demo test lint format venv slow clean

venv: $(STAMP)

$(STAMP): setup.py pyproject.toml
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
	$(BIN)/python -m pytest -n 2 -m 'not slow' tests seqtrain

slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --timeout 900 -m slow tests

clean:
	rm -rf $(VENV) build *.egg-info workdir
