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
CALIBRATION = $(BUILD)/character_cnn-calibration.jsonl
INT8 = $(BUILD)/int8/character_cnn.model
IMAGE_NET = $(BUILD)/image_net.model

# The examples and the archives of each.
EXAMPLES = gluon_alexnet gluon_character_cnn lstm_ptb mar_1x mxnet_vision onnx ssd
ARCHIVES_gluon_alexnet = $(BUILD)/alexnet_hybrid.model $(BUILD)/alexnet_imperative.model
ARCHIVES_gluon_character_cnn = $(CREPE)
ARCHIVES_lstm_ptb = $(BUILD)/lstm_ptb.model
ARCHIVES_mar_1x = $(BUILD)/mar_1x/digits.mar
ARCHIVES_mxnet_vision = $(BUILD)/mxnet_vision.model
ARCHIVES_onnx = $(BUILD)/digits.model $(BUILD)/digits_image.model
ARCHIVES_ssd = $(BUILD)/ssd.model

.DEFAULT_GOAL := help
.PHONY: engines-networks help setup serve train example examples test test-fast lint type bench bench-quick bench-compare bench-settings bench-peers bench-attacks docs constraints proto chaos simulate check image-test toolkits-test clean

help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(BIN)/.installed  ## Build the virtual environment with everything in it

# Stamped by the project file: a changed dependency installs again.
$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v[:2] <= (3, 12))' || \
	  { echo "mxnet-model-server needs Python 3.10 to 3.12; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable '.[dev]'
	@$(BIN)/python -m mms.engines.imports
	@touch $@

serve: setup $(CREPE) ## Build the example model if needed, and serve it on port 8080
	$(BIN)/mxnet-model-server --models crepe=$(CREPE) --port $(PORT)

# Training happens once; the parameters stay in build/ until what they are made from changes.
$(CREPE_FOLDER)/character_cnn-0000.params: $(CREPE_SOURCES) | setup
	$(BIN)/python $(CREPE_SOURCE)/train.py --output $(CREPE_FOLDER)

$(CREPE): $(CREPE_FOLDER)/character_cnn-0000.params
	$(BIN)/mxnet-model-export --model-name character_cnn --model-path $(CREPE_FOLDER) \
	  --service-file-path $(CREPE_FOLDER)/character_cnn_service.py --export-path $(BUILD) --force

$(CALIBRATION): $(CREPE_SOURCE)/calibration.py $(CREPE_SOURCE)/corpus.py | setup
	$(BIN)/python $(CREPE_SOURCE)/calibration.py --output $@

$(INT8): $(CREPE) $(CALIBRATION)
	$(BIN)/mxnet-model-export --model-name character_cnn --model-path $(CREPE_FOLDER) \
	  --service-file-path $(CREPE_FOLDER)/character_cnn_service.py --export-path $(BUILD)/int8 \
	  --quantize int8 --calibration-data $(CALIBRATION) --force

$(IMAGE_NET): benchmarks/image_net.py benchmarks/services/image_net.py | setup
	$(BIN)/python -m benchmarks.image_net $(BUILD)

train: setup ## Train the example model again
	$(BIN)/python $(CREPE_SOURCE)/train.py --output $(CREPE_FOLDER)

example: $(ARCHIVES_$(NAME)) ## Train an example if needed, and pack it: make example NAME=ssd
	@test -n "$^" || { echo "say which: make example NAME=..., one of $(EXAMPLES)"; exit 1; }

examples: $(foreach name,$(EXAMPLES),$(ARCHIVES_$(name))) ## Train and pack all examples

# Like the one above. Training writes its figures last, so they say that the folder is complete.
TRAINED = $(patsubst %,$(BUILD)/%-metrics.json,$(filter-out gluon_character_cnn mar_1x onnx,$(EXAMPLES)))
.SECONDEXPANSION:
$(TRAINED): $(BUILD)/%-metrics.json: \
  $$(wildcard examples/$$*/*.py examples/$$*/*.json examples/$$*/*.txt) | setup
	$(BIN)/python examples/$*/train.py --output $(BUILD)/$*

$(ARCHIVES_lstm_ptb) $(ARCHIVES_mxnet_vision) $(ARCHIVES_ssd): $(BUILD)/%.model: $(BUILD)/%-metrics.json
	$(BIN)/mxnet-model-export --model-name $* --model-path $(BUILD)/$* --export-path $(BUILD) --force

$(ARCHIVES_gluon_alexnet): $(BUILD)/alexnet_%.model: $(BUILD)/gluon_alexnet-metrics.json
	$(BIN)/mxnet-model-export --model-name alexnet_$* --model-path $(BUILD)/gluon_alexnet \
	  --service-file-path examples/gluon_alexnet/gluon_$*_alexnet.py --export-path $(BUILD) --force

$(ARCHIVES_onnx): $(BUILD)/%.model: examples/onnx/train.py | setup
	$(BIN)/python examples/onnx/train.py --output $(BUILD)/onnx
	$(BIN)/mxnet-model-export --model-name $* --model-path $(BUILD)/onnx/$* --export-path $(BUILD) --force

$(ARCHIVES_mar_1x): $(wildcard examples/mar_1x/*.py) | setup
	$(BIN)/python examples/mar_1x/build.py --output $(BUILD)/mar_1x

test: setup $(CREPE) ## Run every test
	$(BIN)/pytest -n 2 --dist loadfile

test-fast: setup ## Run the tests that need no process, no port and no MXNet
	$(BIN)/pytest tests/unit

constraints: ## Look for newer versions of what `make setup` installs
	$(PYTHON) -m venv $(BUILD)/uv
	$(BUILD)/uv/bin/pip install --quiet --disable-pip-version-check uv
	$(BUILD)/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev \
	  --no-annotate --no-header --output-file $(BUILD)/constraints.txt pyproject.toml
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  sed "s/ and sys_platform == 'linux'//; s/ and python_full_version < '3.13'//; \
	    s/ ; python_full_version < '3.13'$$//" $(BUILD)/constraints.txt; } > $(BUILD)/constraints
	mv $(BUILD)/constraints constraints.txt

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup ## Check types
	$(BIN)/mypy

docs: setup ## Write what the documentation says of the code from the code
	$(BIN)/python docs/generate.py

engines-networks: setup ## Convert forty networks, compare other engines with MXNet, write the table
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.convert.table $(BUILD)/engines-networks

bench-peers: setup $(CREPE) ## Measure other model servers beside ours; installs them first (4 GB)
	$(BIN)/python -m benchmarks.peers --archive $(CREPE) --root $(BUILD)/peers \
	  --output $(BUILD)/peers.json

# An old compiler on purpose: newer runtimes read what it writes, but not the other way round.
proto: ## Write the gRPC modules from mms/grpc/inference.proto
	$(PYTHON) -m venv $(BUILD)/protoc
	$(BUILD)/protoc/bin/pip install --quiet grpcio-tools==1.62.3 'setuptools<80'
	$(BUILD)/protoc/bin/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \
	  mms/grpc/inference.proto

BENCH = $(BIN)/python -m benchmarks.bench --crepe $(CREPE) --int8 $(INT8) --image $(IMAGE_NET) \
  --output $(BUILD)/bench.json

bench: setup $(CREPE) $(INT8) $(IMAGE_NET) ## Measure the server against the same work done bare, ten minutes
	$(BENCH)

bench-quick: setup $(CREPE) $(INT8) $(IMAGE_NET) ## The same in two minutes: does it work?
	$(BENCH) --quick

bench-settings: setup $(CREPE) ## What workers, threads and ways to batch do, three minutes
	$(BIN)/python -m benchmarks.settings --crepe $(CREPE)

bench-compare: setup ## Compare two results of make bench: A=old.json B=new.json
	@test -n "$(A)" && test -n "$(B)" || { echo "usage: make bench-compare A=old.json B=new.json"; exit 1; }
	$(BIN)/python -m benchmarks.compare $(A) $(B)

bench-attacks: setup ## What good clients notice while others attack, five minutes
	$(BIN)/python -m benchmarks.attacks

chaos: setup ## Ten minutes of faults under load; fails on any lost or wrong answer
	$(BIN)/python -m tests.chaos --minutes 10

simulate: setup ## A million events of the queue and the pools under a virtual clock, with faults
	$(BIN)/python -m tests.simulation --steps 1000000

image-test: ## Build the container image with buildah, run it and check it (root, Debian)
	PYTHON=$(PYTHON) BUILD=$(BUILD) docker/image-test.sh

# SageMaker's toolkits beside this project, unmodified. Older than NumPy 1.24, which MXNet 1.9 does
# not import, and older than the setuptools without pkg_resources, which they import.
TOOLKITS = $(BUILD)/toolkits
$(TOOLKITS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TOOLKITS)
	$(TOOLKITS)/bin/pip install --quiet --disable-pip-version-check --editable . \
	  sagemaker-inference==1.10.1 sagemaker-mxnet-inference==1.5.5 \
	  sagemaker-huggingface-inference-toolkit==2.6.0 'transformers<5' 'numpy<1.24' 'setuptools<81'
	@touch $@

toolkits-test: setup $(TOOLKITS)/.installed ## SageMaker's three toolkits start this server, two minutes (root)
	TOOLKITS_BIN=$(abspath $(TOOLKITS))/bin $(BIN)/pytest tests/toolkits

check: lint type test toolkits-test ## Everything that CI runs

clean: ## Remove everything that was built
	rm -rf $(VENV) $(BUILD) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
