# `make fit` and `make test` need nothing but Python ≥ 3.10 and make; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: fit test docs test-browser coverage mutation check wheel clean

fit: $(VENV)/installed
	$(BIN)/python -m kgpyro.fit --model lfm --prior normal

# the site is built and the wheel installs while the tests run
test: $(VENV)/installed
	$(MAKE) -j 3 check docs wheel

# the pages as a site, in site/html/: a warning is an error, and no network is needed
docs: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -E -W --keep-going -n -q -c docs . site/html

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations=15 --nbmake --nbmake-timeout=180 \
		notebooks tests

# branches and lines that the tests go through, at least 92 %
coverage: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term-missing

# small errors in the likelihoods, batches, ranking and priors that the tests do not find; half an hour
mutation: $(VENV)/installed
	$(INSTALL) mutmut==3.8.1
	$(BIN)/python tests/mutation.py

# notebook 02 in JupyterLab and headless Chromium, which must be installed; screenshots go to artefacts/
test-browser: $(VENV)/installed
	$(INSTALL) -e ".[browser]"
	$(BIN)/python -m pytest -s tests/browser.py

# the wheel, built from a clean tree, installed into an environment of its own and run from another folder
wheel: $(VENV)/installed
	rm -rf build dist $(VENV)/clean
	$(BIN)/python -m build --quiet --wheel .
	$(PYTHON) -m venv $(VENV)/clean
	$(VENV)/clean/bin/python -m pip install --quiet -c constraints.txt dist/kgpyro-*.whl
	cd $(VENV)/clean && rm -rf wheel-run && env -u PYTHONPATH bin/python -m kgpyro.fit --model lim --epochs 20 \
		--no-progress --out wheel-run && bin/kgpyro predict wheel-run --head brazil --relation commonbloc0 --top 3
	rm -rf build

$(VENV)/installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
