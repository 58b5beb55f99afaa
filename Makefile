# make demo: see it work on sample faces and on a photograph. make test: the test suite, without the slow tests.
# make test-slow: the slow tests. All of them set everything up by themselves.
SHELL := bash
.SHELLFLAGS := -e -o pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles what it imports; compiling every file at once would take half of the installation.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
PYTEST_TIMM := PYTHONPATH=$(VENV)/timm $(BIN)/python -m pytest
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-slow lint format

demo: $(VENV)/.installed
	$(BIN)/python recognize_au.py assets/faces --out aus.csv --picture aus.png
	$(BIN)/python -c "from PIL import Image; from skimage import data; Image.fromarray(data.astronaut()).save('astronaut.png')"
	$(BIN)/python recognize_au.py astronaut.png --out astronaut.csv --picture astronaut-aus.png
	$(BIN)/python prepare_data.py rendered --subjects 30 --images-per-subject 5 --seed 3 --validation 0 --test 1 --out data/demo
	$(BIN)/python eval_au.py --data data/demo --out runs/demo

test: $(VENV)/.installed $(VENV)/timm/.installed
	$(PYTEST)
	$(PYTEST_TIMM) -m "timm and not slow"

# What each of them took is in slow-tests.txt. Those of timm all run again: pytest fails where it finds no slow one.
test-slow: $(VENV)/.installed $(VENV)/timm/.installed
	$(PYTEST) -m slow --durations=0 | tee slow-tests.txt
	$(PYTEST_TIMM) -m timm --durations=0 | tee --append slow-tests.txt

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first, so that nothing else pulls in another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable ".[dev]"
	touch $@

# Transformers uses torchvision wherever it finds it, so it lies in a folder that only the tests of timm see.
$(VENV)/timm/.installed: $(VENV)/.installed
	rm -rf $(@D)
	$(INSTALL) --no-deps --target $(@D) timm torchvision
	touch $@
