# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-bundle test lint clean

# What a scan needs: no torch in here.
$(VENV)/.scan: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[cpu]'
	touch $@

$(VENV)/.test: $(VENV)/.scan
	$(PIP) -e '.[test]'
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

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One test process a core, one thread each.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadgroup

clean:
	rm -rf $(VENV) demo runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
