# Each target first makes .venv when it is missing or older than pyproject.toml.
# Another interpreter: make test PYTHON=python3.13
# With what is optional, too: make test EXTRAS=dev,formats,harvest,interop

PYTHON ?= python3
EXTRAS ?= dev
CUDA ?= 13
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help lab demo test test-gpu test-interop lint docs notebooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

lab: .venv/.installed ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks/01_quickstart.ipynb

demo: .venv/.installed ## fit a dictionary of the embeddings that come with the repository
	$(BIN)/dbksvd fit data/minilm-wikitext2.zarr --where split=train --validation-where split=validation \
		--n-components 1024 --n-nonzero-coefs 20 --center --batch-size 5120 --max-iter 60 \
		--output demo-dictionary.zarr --overwrite

test: lint ## lint, then run the tests and the examples in the docstrings
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: .venv-gpu/.installed ## run the tests where there is a GPU; with a driver for CUDA 12: make test-gpu CUDA=12
	DBKSVD_GPU=required .venv-gpu/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-interop: .venv-interop/.installed ## run SAEBench on wrapped dictionaries, in an environment of its own
	.venv-interop/bin/pytest --confcutdir=tests/interop/saebench -o filterwarnings=default --disable-warnings \
		tests/interop/saebench tests/interop/test_saebench_wrapper.py

lint: .venv/.installed ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/.installed ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -n -b html docs docs/_build/html

notebooks: .venv/.installed ## run the notebooks and keep their output
	$(BIN)/python notebooks/execute.py

clean: ## remove the environments, the demo's dictionary, builds and caches
	rm -rf .venv .venv-gpu .venv-interop demo-dictionary.zarr build dist docs/_build docs/_notebooks docs/_widgets docs/api/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dbksvd_dask needs Python 3.11 or newer, but $(PYTHON) is %d.%d. Name another: make $(MAKECMDGOALS) PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv --upgrade-deps .venv
	$(BIN)/python -m pip install -e ".[$(EXTRAS)]"
	@touch $@

# Not `dev`, whose compiler for kernels is that of CUDA 13.
.venv-gpu/.installed: pyproject.toml
	$(PYTHON) -m venv --upgrade-deps .venv-gpu
	.venv-gpu/bin/python -m pip install -e ".[test,cuda$(CUDA)]"
	@touch $@

# SAEBench asks for older packages than it needs: it is installed without its own list.
.venv-interop/.installed: pyproject.toml $(wildcard tests/interop/saebench/*.txt)
	$(PYTHON) -m venv --upgrade-deps .venv-interop
	.venv-interop/bin/python -m pip install "torch==2.13.0"
	.venv-interop/bin/python -m pip install -e . -r tests/interop/saebench/requirements.txt
	.venv-interop/bin/python -m pip install --no-deps -r tests/interop/saebench/requirements-without-dependencies.txt
	@touch $@
