# make demo   every stage of both papers on this computer, from nothing: environment, then recipes/pocket.py
# make test   lint, types and the whole test suite, in the same environment
# make quick  the same without the tests marked slow (tests/conftest.py)
# make clean  remove the environment (runs/ is yours and stays)
#
# make constraints   write constraints.txt anew from the environment, after the tests passed in it
#
# PYTHON=python3.12 chooses the interpreter, VENV=/some/where the environment,
# TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" another build of torch, and
# CONSTRAINTS= (empty) the newest versions that pyproject.toml allows instead of those CI ran.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
RUN ?=
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test quick lint pytest-test pytest-quick constraints clean

demo: $(READY)
	$(BIN)/pocketlm run recipes/pocket.py $(RUN)

# lint and tests beside each other: types are checked in one process
test quick: $(READY)
	$(MAKE) -j 2 lint pytest-$@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

pytest-test: $(READY)
	$(PYTEST)

pytest-quick: $(READY)
	$(PYTEST) -m "not gpu and not slow"

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pocketlm needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install $(addprefix -c ,$(CONSTRAINTS)) -e '.[all,dev]'
	touch $@

constraints: $(READY)
	grep '^#' constraints.txt > constraints.new
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find pocketlm recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
