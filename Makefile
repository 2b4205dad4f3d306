# The two commands: `make serve` and `make test`. Both set up all they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BUILD ?= build
PORT ?= 8080

CREPE_SOURCE = examples/gluon_character_cnn
CREPE_SOURCES = $(addprefix $(CREPE_SOURCE)/,train.py corpus.py character_cnn_service.py \
  signature.json synset.txt sample.json)
CREPE_FOLDER = $(BUILD)/character_cnn
CREPE = $(BUILD)/character_cnn.model

.DEFAULT_GOAL := help
.PHONY: help setup serve train test test-fast lint type bench docs proto chaos check image-test clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BIN)/.installed  ## Build the virtual environment with everything in it

# Stamped by the project file: a changed dependency installs again.
$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v[:2] <= (3, 12))' || \
	  { echo "mxnet-model-server needs Python 3.10 to 3.12; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -m mms.worker.engine
	@touch $@

serve: setup $(CREPE) ## Build the example model if needed, and serve it on port 8080
	$(BIN)/mxnet-model-server --models crepe=$(CREPE) --port $(PORT)

# Training happens once; the parameters stay in build/ until what they are made from changes.
$(CREPE_FOLDER)/character_cnn-0000.params: $(CREPE_SOURCES) | setup
	$(BIN)/python $(CREPE_SOURCE)/train.py --output $(CREPE_FOLDER)

$(CREPE): $(CREPE_FOLDER)/character_cnn-0000.params
	$(BIN)/mxnet-model-export --model-name character_cnn --model-path $(CREPE_FOLDER) \
	  --service-file-path $(CREPE_FOLDER)/character_cnn_service.py --export-path $(BUILD) --force

train: setup ## Train the example model again
	$(BIN)/python $(CREPE_SOURCE)/train.py --output $(CREPE_FOLDER)

test: setup $(CREPE) ## Run every test
	$(BIN)/pytest -n 2 --dist loadfile

test-fast: setup ## Run the tests that need neither processes nor models
	$(BIN)/pytest tests/unit

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup ## Check types
	$(BIN)/mypy

docs: setup ## Write docs/reference.md from the code
	$(BIN)/python docs/generate.py

# An old compiler on purpose: newer runtimes read what it writes, but not the other way round.
proto: ## Write the gRPC modules from mms/grpc/inference.proto
	$(PYTHON) -m venv $(BUILD)/protoc
	$(BUILD)/protoc/bin/pip install --quiet grpcio-tools==1.62.3 'setuptools<80'
	$(BUILD)/protoc/bin/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \
	  mms/grpc/inference.proto

bench: setup $(CREPE) ## Measure the server against the bare handler and the bare model
	$(BIN)/python -m benchmarks.bench $(CREPE)

chaos: setup ## Ten minutes of faults under load; fails on any lost or wrong answer
	$(BIN)/python -m tests.chaos --minutes 10

image-test: ## Build the container image with buildah, run it and check it (root, Debian)
	PYTHON=$(PYTHON) BUILD=$(BUILD) docker/image-test.sh

check: lint type test ## Everything that CI runs

clean: ## Remove everything that was built
	rm -rf $(VENV) $(BUILD) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
