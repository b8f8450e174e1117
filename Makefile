# Each target sets up what it needs: Debian packages (as root) and .venv.
PYTHON := .venv/bin/python

.PHONY: help setup demo man test faults swaps kernels unit lint format bench comparison soak site clean

.DEFAULT_GOAL := help

help:
	@echo "make demo    restart a real HAProxy under load, without and with synplug"
	@echo "make test    all tests but those of make faults, swaps and kernels, in private network namespaces"
	@echo "make faults  the whole fault matrix: every step, process, fault and backend"
	@echo "make swaps   Envoy, HAProxy, nginx and gunicorn swapped under load, also near saturation"
	@echo "make kernels the tests of tests/guest on every kernel; the tables of docs/kernels.md"
	@echo "make unit    the tests that need no root and no namespaces"
	@echo "make lint    ruff and mypy --strict"
	@echo "make bench   restarts beside every alternative: docs/benchmarks.*; BENCH=--quick for a trial"
	@echo "make comparison  the table of docs/comparison.md, measured in a guest"
	@echo "make man     the manual pages, man/*.1, and docs/command-line.md, from the options"
	@echo "make soak    1,000 restarts in a row, 50 at once, 100,000 cases of the properties"
	@echo "make site    docs/ as web pages, in build/site"
	@echo "make format  ruff format"

setup:
	@sh scripts/setup.sh

demo: setup
	@$(PYTHON) netns-fixtures/demo.py

# Before pytest, which leaves the machine's network.
GUEST := PYTHONPATH=netns-fixtures $(PYTHON) -m guest --fetch

test: setup
	@$(GUEST) --systemd
	@$(GUEST) --suite stock-bookworm
	@sh scripts/test.sh

FAULTS := $(wildcard tests/integration/test_*faults.py) tests/guest/test_plug_faults.py

faults: setup
	@$(GUEST)
	$(PYTHON) -m pytest -m "faults or not faults" $(FAULTS)

swaps: setup
	$(PYTHON) -m pytest -s -m "swaps or not swaps" tests/integration/test_swap_load.py

GUESTS := bullseye bookworm trixie sid stock-bookworm stock-trixie stock-sid

kernels: setup
	@for suite in $(GUESTS); do $(GUEST) --suite $$suite || exit; done
	@$(GUEST) --systemd
	GUESTS_AT_ONCE=2 KERNELS="machine $(GUESTS)" KERNELS_TABLES=docs/kernels.md $(PYTHON) -m pytest -m "not faults" tests/guest

unit: setup
	$(PYTHON) -m pytest tests/unit

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup
	@PYTHONPATH=netns-fixtures $(PYTHON) -m bench $(BENCH)

comparison: setup
	@$(GUEST) --suite stock-bookworm
	@$(PYTHON) bench/comparison.py --write

site: setup
	.venv/bin/mkdocs build --strict

soak: setup
	$(PYTHON) -m pytest --soak tests/unit tests/integration/test_soak.py

man: setup
	@$(PYTHON) scripts/manual_pages.py

clean:
	rm -rf .venv .venv-ansible .venv-pipx .guest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
