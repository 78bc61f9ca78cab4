# make install  the environment alone: .venv, with the command as .venv/bin/pocketlm
# make demo   every stage of both papers on this computer, from nothing: environment, then recipes/pocket.py
# make test   lint, types and the whole test suite, in the same environment
# make quick  the same without the tests marked slow (tests/conftest.py)
# make rehearsals  what CI runs beside the tests: R1's larger sizes, on one rank and on four
# make docs   the guides and the API as pages, in site/; links are checked
# make gpu    on a machine with a CUDA device: install, the tests that need one, and the benchmark that
#             writes docs/results/gpu.md
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

.PHONY: install demo test quick lint pytest-test pytest-quick rehearsals docs gpu constraints clean

install: $(READY)

demo: $(READY)
	$(BIN)/pocketlm run recipes/pocket.py $(RUN)

# lint and tests beside each other: types are checked in one process
test quick: $(READY)
	$(MAKE) -j 2 lint pytest-$@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

# three at a time: slow tests wait for the processes that they start
pytest-test: $(READY)
	$(PYTEST) -n 3

pytest-quick: $(READY)
	$(PYTEST) -n 2 -m "not gpu and not browser and not slow"

rehearsals: $(READY)
	for size in 360m 950m; do for ranks in 1 4; do \
		$(BIN)/pocketlm rehearse recipes/r1.py --size $$size --processes $$ranks --count 128 || exit 1; \
	done; done

docs: $(READY)
	$(BIN)/python -m pip install -q $(addprefix -c ,$(CONSTRAINTS)) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

gpu: $(READY)
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

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
	rm -rf $(VENV) .pytest_cache .ruff_cache build site *.egg-info
	find pocketlm recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
