# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up in .venv. Needs Python >= 3.10 and a C++ compiler.

PYTHON ?= python3
# Installed first and by itself, so that you choose the build: make .venv TORCH="torch --index-url URL"
TORCH ?= torch==2.13.0
INPUT ?=
OUTPUT ?= demo_output
GOLDENS ?= ../shared/reference/goldens

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
PACKAGING := setup.py build_messages.py pyproject.toml package.xml scripts/stream_node \
             $(wildcard msg/*.msg launch/* config/*)

# Checks the type of every message field, and keeps the nodes under test on this machine.
export ROS_PYTHON_CHECK_FIELDS := 1
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST

.PHONY: .venv demo test lint clean

.venv: .venv/.installed

$(BIN)/python:
	$(PYTHON) -m venv .venv

# In this order: the messages can only be generated once the rosidl wheels of the `ros` extra are there,
# hence the second installation of the package itself.
.venv/.installed: $(PACKAGING) | $(BIN)/python
	$(PIP) install "setuptools>=77" wheel
	$(PIP) install $(TORCH)
	$(PIP) install --no-build-isolation --editable ".[ros,dev]"
	$(PIP) install --no-build-isolation --no-deps --editable .
	touch $@

demo: .venv
	$(BIN)/xsvggt demo $(if $(INPUT),--input "$(INPUT)") --output "$(OUTPUT)"

test: lint
	$(BIN)/python -m pytest --quiet
	@if [ -d "$(GOLDENS)" ]; then $(BIN)/python test/parity.py "$(GOLDENS)"; \
	else echo "parity with the published code: skipped, no $(GOLDENS)"; fi

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build install log dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
