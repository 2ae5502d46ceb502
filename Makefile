# Every target first makes its own environment. It needs Python 3.11 or newer, git, make and the package index.
# `make bench` also needs a C compiler, and measures Node if it is installed.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TEST   := $(BIN)/python -m pytest
# Most tests wait for sockets or clocks, so use more processes than cores.
WORKERS ?= 6
# Tests with processes, browsers and other packages, and random searches. They take long and add no coverage.
SERVERS := tests/clients tests/chaos tests/documents tests/e2e tests/endurance tests/test_examples.py tests/test_process_end.py tests/test_renewal.py \
	tests/test_testing_plugins.py
SEARCHES := tests/test_http1_differential.py tests/test_hub_fairness.py tests/test_hub_model.py tests/test_fuzz.py
# Servers stop differently since Python 3.12, so `make endurance` runs on this Python as well.
SECOND_PYTHON ?= $(or $(lastword $(wildcard $(HOME)/.pyenv/versions/3.13.*/bin/python)),python3.13)
SECOND := $(VENV)/second

# Coverage takes half as long again. It is measured in CI, by `make cover`, and by `make test COVERAGE=1`.
COVERAGE ?= $(CI)

# The tests start hundreds of processes, so Python must cache the compiled modules.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run fmt lint types mypy pyright test compiled-tests cover docs client-js examples autobahn autobahn-full \
	servers endurance chaos fuzz bench-setup bench bench-framework bench-server bench-peers bench-hub bench-cluster-setup \
	bench-cluster bench-dev overhead check clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready  ## Make a virtual environment with everything for development

# What serving needs, without the test tools. The pip of $(PYTHON) fills a virtual environment that has no pip of its
# own yet: that takes half the time.
$(VENV)/.run: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("microws needs Python 3.11 or later, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --no-compile --editable ".[templates]" \
		|| { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --editable ".[templates]"; }
	touch $@

$(VENV)/.ready: $(VENV)/.run
	$(BIN)/python -m ensurepip >$(VENV)/ensurepip.log
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

run: $(VENV)/.run  ## Serve examples/broadcast.py on http://127.0.0.1:8000/
	$(BIN)/microws run examples/broadcast.py

fmt: setup  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --quiet . || true

lint: setup types  ## Check style and types, and the lowest dependency versions for security advisories
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(TEST) -q tests/test_dependencies.py

TYPED_APP := tests/typing/typed_app.py

types: mypy pyright  ## Check types, strictly, and that other type checkers know at least 98 % of the public ones

mypy: setup
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.13 $(TYPED_APP)

pyright: setup
	PATH="$(abspath $(BIN)):$$PATH" pyright --pythonversion 3.11 $(TYPED_APP)
	PATH="$(abspath $(BIN)):$$PATH" pyright --pythonversion 3.13 $(TYPED_APP)
	PATH="$(abspath $(BIN)):$$PATH" pyright --verifytypes microws --ignoreexternal --outputjson | $(BIN)/python -c \
		"import json, sys; score = json.load(sys.stdin)['typeCompleteness']['completenessScore']; \
		print(f'pyright knows {score:.1%} of the public types'); sys.exit(score < 0.98)"

# While the types are checked, one process compiles the tests, assertions included. Otherwise each worker would.
test: setup  ## Check style and types, and run the tests
	$(MAKE) --no-print-directory -j 3 lint compiled-tests
ifeq ($(COVERAGE),)
	$(TEST) -q -n $(WORKERS) --dist loadgroup $(addprefix --ignore=,$(SERVERS) $(SEARCHES))
else
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n $(WORKERS) --dist loadgroup $(addprefix --ignore=,$(SERVERS) $(SEARCHES))
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
endif

compiled-tests: setup
	$(TEST) --collect-only -qq $(addprefix --ignore=,$(SERVERS) $(SEARCHES)) >/dev/null

cover: setup  ## Run the tests, and write their coverage to htmlcov/
	$(MAKE) --no-print-directory test COVERAGE=1
	$(BIN)/coverage html

docs: $(VENV)/.docs  ## Update docs/reference.md, check every page, and build site/
	$(BIN)/python docs/generate_reference.py
	$(TEST) -q tests/test_docs.py
	$(BIN)/zensical build --clean --strict

client-js: setup  ## Put the JavaScript client into clients/js, also minified (needs npm)
	cd tests/clients/node && npm ci --silent
	cp microws/client/microws.js microws/client/microws.d.ts clients/js/
	tests/clients/node/node_modules/.bin/esbuild clients/js/microws.js --minify --format=esm --target=es2022 --outfile=clients/js/microws.min.js

examples: setup  ## Test every example over a socket and in a browser
	$(TEST) -q tests/test_examples.py

autobahn: setup  ## Run Autobahn's WebSocket test suite against the server (needs Python 2.7)
	$(BIN)/python tests/autobahn/run.py

autobahn-full: setup  ## Run every Autobahn case, including speed and compression
	$(BIN)/python tests/autobahn/run.py --full

endurance: setup $(if $(SECOND_PYTHON),$(SECOND)/.ready)  ## Attack the server and print the figures: ten minutes
	MICROWS_ENDURANCE=whole MICROWS_TEST_PYTHON=$(if $(SECOND_PYTHON),$(abspath $(SECOND))/bin/python) $(TEST) -q tests/endurance

chaos: setup  ## Kill, stop and overtake the processes of a hub, and Redis, and print the figures: a quarter of an hour
	CHAOS=whole $(TEST) -q tests/chaos tests/e2e/test_e2e_hub.py
	CHAOS=whole $(TEST) -q tests/backplanes/test_local.py -k kill

$(SECOND)/.ready: pyproject.toml $(VENV)/.ready
	$(SECOND_PYTHON) --version || { echo "endurance needs a Python 3.13: make endurance SECOND_PYTHON=python3.13, or SECOND_PYTHON= for none"; exit 1; }
	$(SECOND_PYTHON) -m venv $(SECOND)
	$(SECOND)/bin/python -m pip install --quiet --editable .
	touch $@

fuzz: setup  ## Search longer for inputs that break something
	HYPOTHESIS_PROFILE=long $(TEST) -q -n $(WORKERS) -m hypothesis --timeout 3600
	FUZZ_CASES=$${FUZZ_CASES:-10000000} FUZZ_SEED=random $(TEST) -q -n $(WORKERS) tests/test_http1_differential.py

bench-setup: setup  ## Install the peers that the benchmarks measure
	$(BIN)/python -m pip install --quiet --group bench || echo "some peers cannot be installed here; the notes of the benchmark list them"
	if command -v npm; then npm ci --silent --prefix bench/apps/node_ws; else echo "npm not found: Node's ws is not measured"; fi

bench: bench-framework bench-server  ## Compare with frameworks on one server, then with servers

bench-framework: bench-setup  ## Compare with Starlette and Quart, all on one server
	$(BIN)/python bench/run.py --suite framework

bench-server: bench-setup  ## Compare HTTP, WebSockets and event streams with other servers: twelve minutes
	$(BIN)/python bench/run.py --suite server

bench-peers: bench-setup  ## Compare the fan-out with 11 others and with floors, and draw a chart: half an hour
	$(BIN)/python bench/run.py --suite peers
	$(BIN)/python bench/chart.py

bench-hub: setup  ## Check the promises of the hub under load: a quarter of an hour
	$(BIN)/python bench/hub.py

bench-cluster-setup: setup  ## Install the peers of bench-cluster; redis-server comes from the system
	$(BIN)/python -m pip install --quiet --group bench-cluster
	command -v redis-server || echo "redis-server not found: the peers that need it are not measured"

bench-cluster: setup  ## Measure the hub process, and compare 4 workers with one and with peers over Redis: ten minutes
	-$(BIN)/python bench/cluster.py
	$(BIN)/python bench/run.py --suite cluster

bench-dev: setup  ## Measure reloads of microws dev, uvicorn and fastapi: five minutes
	$(BIN)/python -m pip install --quiet fastapi-cli
	$(BIN)/python bench/dev.py

overhead: bench-setup  ## Measure what the framework adds, in memory
	$(BIN)/python bench/overhead.py

servers: setup  ## Run the slow tests: examples in a browser, other clients, proxies, random searches
	$(TEST) -q -n $(WORKERS) --dist loadgroup $(SERVERS) $(SEARCHES)

check: test servers autobahn  ## Run everything that CI runs

clean:  ## Remove everything that these targets made
	rm -rf $(VENV) .coverage* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache bench/bin bench/results bench/apps/node_ws/node_modules tests/clients/node/node_modules dist build site .cache
	find microws bench docs examples tests -name __pycache__ -prune -exec rm -rf {} +
