# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up in .venv, and test-jazzy in .venv-jazzy. Needs Python >= 3.10 and a C++ compiler.

PYTHON ?= python3
# Installed first and by itself, so that you choose the build: make .venv TORCH="torch --index-url URL"
TORCH ?= torch==2.13.0
INPUT ?=
OUTPUT ?= demo_output

BIN := .venv/bin
# On a terminal it shows how far a download is; elsewhere it says no more than an error.
PIP := python -m pip --disable-pip-version-check $(if $(MAKE_TERMOUT),,-qq)
PACKAGING := setup.py build_messages.py pyproject.toml package.xml \
             $(wildcard scripts/* msg/*.msg launch/*.py config/*)
INSTALLED := .venv/.installed
# Two processes of one thread each; the tests of a file share one. A test that hangs is ended, and its stack printed.
PYTEST := -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
          --max-worker-restart 0 --durations 12 -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

# Checks the type of every message field, and keeps the nodes under test on this machine.
export ROS_PYTHON_CHECK_FIELDS := 1
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
# Modules are compiled once, not by each of some hundred processes, also where the environment says otherwise.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: .venv .venv-jazzy demo test test-kilted test-jazzy lint docs clean

.venv: $(INSTALLED)

.venv-jazzy: .venv-jazzy/.installed

# Moved with its folder, an environment still points to where it was.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif

$(BIN)/python:
	@echo "[1/5] virtual environment in $(CURDIR)/.venv; all five steps take 2 to 7 minutes"
	@$(PYTHON) -m venv .venv

# In this order: the messages can only be generated once the rosidl wheels of the `ros` extra are there,
# hence the second installation of the package itself.
$(INSTALLED): $(PACKAGING) | $(BIN)/python
	@echo "[2/5] setuptools, wheel"
	@$(BIN)/$(PIP) install "setuptools>=77" wheel
	@echo "[3/5] $(TORCH), 200 MB to 3 GB with what it needs"
	@$(BIN)/$(PIP) install $(TORCH)
	@echo "[4/5] the package in place, with ROS 2, tools and what else pyproject.toml names, about 800 MB"
	@$(BIN)/$(PIP) install --no-build-isolation --editable ".[ros-kilted,colcon,dev,train]"
	@echo "[5/5] the package's ROS messages, generated and compiled"
	@$(BIN)/$(PIP) install --no-build-isolation --no-deps --editable .
	@echo $(CURDIR) > $@
	@echo "set up: $$(du -sh .venv | cut -f1) in $(CURDIR)/.venv"

# The wheels of both distributions have modules of the same names, so each has its own environment. What is not ROS's,
# torch above all, is taken from .venv.
.venv-jazzy/.installed: $(INSTALLED)
	@echo "[1/2] virtual environment in $(CURDIR)/.venv-jazzy, with the package and ROS 2 Jazzy, about 150 MB"
	@rm -rf .venv-jazzy
	@$(BIN)/python -m venv --without-pip .venv-jazzy
	@.venv-jazzy/bin/python test/support/borrow.py .venv
	@.venv-jazzy/bin/$(PIP) install --no-build-isolation --editable ".[ros-jazzy,dev,train]"
	@echo "[2/2] the package's ROS messages, generated and compiled"
	@.venv-jazzy/bin/$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

demo: .venv
	$(BIN)/xsvggt demo $(if $(INPUT),--input "$(INPUT)") --output "$(OUTPUT)"

# Most of the time neither the lint nor the second environment has work for two cores: beside each other.
test: .venv
	@$(MAKE) --no-print-directory --jobs 2 lint .venv-jazzy
	@$(MAKE) --no-print-directory test-kilted test-jazzy

test-kilted: .venv
	$(BIN)/python $(PYTEST)

test-jazzy: .venv-jazzy
	.venv-jazzy/bin/python $(PYTEST) -m ros

lint: .venv
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: .venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "written: $(CURDIR)/site/index.html"

clean:
	rm -rf .venv .venv-jazzy site build install log dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
