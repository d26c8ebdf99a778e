# Two commands matter to a newcomer: `make demo` and `make test`.
# Every target does its own set-up on a fresh Debian 12 machine (root is needed only where Debian packages are missing).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Build artefacts: the agent, the screenshots of the tests, the numbers of the benchmarks.
BUILD := build
# End-to-end tests wait more than they work.
WORKERS := $(shell expr $$(nproc) \* 3 / 2)
# Pythons that the agent is tested on and the machine does not have.
PYTHONS := $(CURDIR)/$(VENV)/pythons

.PHONY: help venv runtime-venv system-packages pythons demo test lint bench agent catalogues docs screenshots dashboards clean lock

help: ## what the targets do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The marker carries the state of the lock files: a changed lock rebuilds the environment.
$(VENV)/.runtime: requirements/build.lock requirements/runtime.lock setup.cfg
	tools/ensure-packages python3-venv
	test -x $(BIN)/python || $$(tools/find-python) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements/build.lock
	$(PIP) install --require-hashes --no-build-isolation -r requirements/runtime.lock
	$(PIP) install --no-build-isolation --no-deps -e .
	# an editable install hides the plugin from twistd, which looks in twisted/plugins below every entry of sys.path
	$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "identree-checkout.pth").write_text("$(CURDIR)\n")'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.lock
	$(PIP) install --require-hashes -r requirements/dev.lock
	touch $@

runtime-venv: $(VENV)/.runtime ## the locked runtime dependencies in .venv (what the Dockerfile uses)

venv: $(VENV)/.dev ## .venv with the program, its locked dependencies and the developers' tools

system-packages: ## the Debian packages that the tests need
	tools/ensure-packages --tests

pythons: $(VENV)/.dev ## the Pythons that managed hosts may have
	tools/ensure-pythons $(BIN)/uv $(PYTHONS)

agent: $(VENV)/.runtime ## build/identree.pyz, the one file that runs on managed hosts
	$(BIN)/python tools/build_agent.py $(BUILD)/identree.pyz

catalogues: $(VENV)/.runtime ## compile the translations
	$(BIN)/python tools/catalogues.py compile

demo: $(VENV)/.runtime catalogues agent ## identree with a built-in identity provider, on loopback, in one minute
	@$(BIN)/python -m identree.cli demo --agent $(BUILD)/identree.pyz

lint: $(VENV)/.dev ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: system-packages $(VENV)/.dev pythons catalogues agent lint ## lint and every test, on real parts
	PATH="$(PYTHONS)/bin:$$PATH" $(BIN)/python -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.dev catalogues agent ## the numbers, measured on this machine
	tools/ensure-packages --bench
	$(BIN)/python -m benchmarks

screenshots: system-packages $(VENV)/.dev catalogues agent ## take the README's pictures anew
	$(BIN)/python -m pytest tests/e2e/test_sudo.py -q -k TestPictures
	$(BIN)/python tools/readme_images.py

dashboards: system-packages $(VENV)/.dev catalogues agent ## write the Grafana dashboards and draw their pictures anew
	$(BIN)/python tools/dashboards.py write
	$(BIN)/python -m pytest tests/e2e/test_monitoring.py -q
	$(BIN)/python tools/plot_dashboards.py

docs: $(VENV)/.runtime ## write docs/configuration.md from the settings registry
	$(BIN)/python -m identree.settings.docs docs/configuration.md

lock: $(VENV)/.dev ## pin every dependency anew, with hashes
	tools/lock

clean: ## remove everything that was built
	rm -rf $(BUILD) $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f templates/locale/*/LC_MESSAGES/*.mo tests/oidc_provider/node_modules/.package-lock.json
	rm -rf tests/oidc_provider/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
