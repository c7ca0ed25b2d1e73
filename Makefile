# `make demo`: everything from nothing to pictures of attention. `make test`: everything checked.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test install clean

demo: $(BIN)/videoattn
	$(BIN)/videoattn demo --overwrite

test: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

install: $(BIN)/videoattn

$(BIN)/videoattn: setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "videoattn needs Python 3.11 or newer, this is %s: make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(BIN)/videoattn
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,decord,torchcodec,pytorchvideo,shards,export,mlflow,wandb]'
	touch $@

clean:
	rm -rf $(VENV) runs
