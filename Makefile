# Every target does its own set-up: it needs make and a Python of 3.11 or newer with venv, and no activated environment.
# Another interpreter: make test PYTHON=python3.12. Settings of a recipe: make quickstart ARGS="--num_scenes 8000".

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# What `make check` runs, without the tests that are marked slow: folders whose tests neither train nor generate.
FAST := tests/test_house.py tests/vqvae tests/perception/test_chains.py tests/train/loop/test_config.py \
	$(addprefix tests/perception/,datasets geometry grammar scenes tokenizers vocabulary)
# The first interpreter that runs, is new enough and can make environments.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	echo $$p; break; fi; done)

.DEFAULT_GOAL := help
.NOTPARALLEL: # two installations into one environment would get in each other's way
.PHONY: help install quickstart demo check test test-browser lint clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

install: $(VENV)/.core ## install the package into .venv, enough to ask the shipped models
	@echo "Next: source $(BIN)/activate"

quickstart: $(VENV)/.train ## fine-tune the shipped base with and without perception tokens, and compare
	@$(BIN)/python -m train.quickstart $(ARGS)

demo: $(VENV)/.demos ## show the shipped models in a browser, on this machine alone
	$(BIN)/python -m demos $(ARGS)

check: $(VENV)/.dev ## style, types and the fast tests, in under two minutes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "$(BIN)/mypy, and beside it the fast tests"
	@$(BIN)/mypy & types=$$!; \
		$(BIN)/python -m pytest -q -m 'not slow and not browser' $(FAST) $(ARGS); tests=$$?; \
		wait $$types && exit $$tests

test: lint ## style, types and all tests but those in a browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

test-browser: $(VENV)/.dev ## use the demos in Chromium, as a visitor would
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
		echo "Installing Chromium"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || { \
		echo "Chromium is missing and could not be installed; as root: apt-get install chromium"; exit 1; }
	$(BIN)/python -m pytest -q -m browser tests/demos $(ARGS)

lint: $(VENV)/.dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist

# One stamp for each set of packages. A stamp is written last, so that an installation cut short is taken up again; an
# environment without a working pip is made anew.
$(VENV)/.core: EXTRAS :=
$(VENV)/.train: EXTRAS := [train]
$(VENV)/.demos: EXTRAS := [demos]
$(VENV)/.dev: EXTRAS := [train,dev]
$(VENV)/.core $(VENV)/.train $(VENV)/.demos $(VENV)/.dev: pyproject.toml
	@python="$(PYTHON)"; if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer with venv was not found (Debian, Ubuntu: apt install python3-venv)."; \
		echo "If it lies elsewhere: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "Making $(VENV) with $$("$$python" --version)"; "$$python" -m venv --clear $(VENV); }
	@echo "Installing .$(EXTRAS) into $(VENV) (minutes the first time: torch with CUDA is large)." \
		"Details: $(VENV)/install.log"
	@rm -f $(VENV)/.failed
	@{ $(BIN)/python -m pip install --progress-bar off --disable-pip-version-check -e '.$(EXTRAS)' 2>&1 \
		|| touch $(VENV)/.failed; } | tee $(VENV)/install.log \
		| sed -n -e 's/^ *\(Downloading\|Using cached\) \([^ ]*\).* \(([0-9.]* [MG]B)\).*/  \2 \3/p' \
			-e 's/^Installing collected.*/  unpacking/p'
	@if [ -e $(VENV)/.failed ]; then grep -A 5 '^ *ERROR' $(VENV)/install.log || tail -n 5 $(VENV)/install.log; \
		echo "Installing failed; run the same command again to go on."; exit 1; fi
	@touch $@
