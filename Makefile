# Two commands on a fresh machine: make demo, make test. Each sets up .venv from the pinned versions by itself.
# make slow DEADLINE=$(( $(date +%s) + 600 )) begins no slow test after ten minutes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint docs small-weights clean

demo: $(VENV)/.installed
	$(BIN)/emo demo --out out/demo.mp4

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile $(if $(DEADLINE),--deadline=$(DEADLINE) -rs)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

docs: $(VENV)/.installed-docs
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -q -d out/doctrees docs out/docs

small-weights: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[people]'
	launch/small_weights.sh

$(VENV)/.created: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emo_jax needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) out *.egg-info
