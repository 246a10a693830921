# Each command sets up what it needs in a fresh clone:
#
#   make demo        the whole line on real digits, in a few minutes
#   make web         a page that draws digits and trains on them in the browser; PORT=8080
#   make docs        the documentation site, in build/site/index.html
#   make test        every check and test of the Python code
#   make test-web    the JavaScript module, and the pages in a real browser; CHROMIUM=/path/to/it
#
# CI runs the last two. PYTHON picks the interpreter (3.11 to 3.13), PIP_ARGS is passed to every pip call that downloads.

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
    $$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# Packages are installed without compiled files: the first import writes them, where nobody forbids it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo web docs test test-web clean

demo: $(VENV)/.demo
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/demo

test: $(VENV)/.dev
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" PIP_ARGS="$(PIP_ARGS)" scripts/check

docs: $(VENV)/.dev
	$(VENV)/bin/python -m zensical build --clean --strict

web: js/node_modules/.package-lock.json
	cd js && npm run --silent web

test-web: $(VENV)/.dev
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/test-web

js/node_modules/.package-lock.json: js/package-lock.json
	@command -v npm > /dev/null || { echo "npm is missing: install Node.js 20 or later."; exit 1; }
	cd js && npm ci --ignore-scripts --silent

clean:
	rm -rf $(VENV) build dist demo js/node_modules js/dist

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with the module venv was found: name one with  make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Everything but torch is pinned with hashes. torch comes by itself, after what it needs, because its build differs
# from machine to machine; PIP_ARGS may name the place that holds the build without CUDA (see docs/install.md).
define install
	$(PIP) install --quiet --no-compile $(PIP_ARGS) --no-deps --require-hashes -r $(1)
	$(PIP) install --quiet --no-compile $(PIP_ARGS) -r constraints/torch.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@
endef

$(VENV)/.demo: constraints/demo.txt constraints/torch.txt pyproject.toml | $(VENV)/bin/python
	$(call install,constraints/demo.txt)

$(VENV)/.dev: constraints/dev.txt constraints/torch.txt pyproject.toml | $(VENV)/bin/python
	$(call install,constraints/dev.txt)
	@touch $(VENV)/.demo
