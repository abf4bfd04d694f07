# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

SERVE := .venv-serve

.PHONY: demo demo-bundle serve test lint clean

# What a scan needs: no torch in here.
$(VENV)/.scan: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[cpu]'
	touch $@

$(VENV)/.test: $(VENV)/.scan
	$(PIP) -e '.[test]'
	touch $@

# An NVIDIA Triton Inference Server for trials on a CPU; it needs numpy below 2, hence an environment of its own.
$(SERVE)/.serve: pyproject.toml constraints-serve.txt
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-serve.txt -e '.[cpu]' nvidia-pytriton
	touch $@

demo: $(VENV)/.scan
	rm -rf demo
	$(BIN)/dissonance synth demo/clips --count 12 --seed 7
	$(BIN)/dissonance scan demo/clips -o demo/out

# Trains the demo bundle from nothing: clips, cache, training, calibration, export. Meant to take less than an hour on two cores.
demo-bundle: $(VENV)/.test
	rm -rf runs/demo
	$(BIN)/dissonance train configs/train/demo.yaml -o runs/demo
	$(BIN)/dissonance export runs/demo -o src/dissonance/bundles/demo --overwrite

# The demo bundle behind that server, until Ctrl-C: http://127.0.0.1:8000, grpc://127.0.0.1:8001.
serve: $(SERVE)/.serve
	$(SERVE)/bin/dissonance repository demo -o models --overwrite
	exec $(SERVE)/bin/dissonance serve models

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One test process a core, one thread each.
test: lint $(SERVE)/.serve
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadgroup

clean:
	rm -rf $(VENV) $(SERVE) demo models runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
