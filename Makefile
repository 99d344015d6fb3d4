# Everything runs in .venv, made here on first use and again when its inputs change.
#
#   make demo    the small Flux at 2x, 3x, 5x: one table, out/demo/*.png, summary.json
#   make test    all tests
#   make lint    ruff and basedpyright
#   make bench   the measurements that are kept under bench/results (an hour on two cores)
#   make clean   remove everything that was made here

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

# Two test processes with one thread each: compiling is single-threaded, and two OpenMP teams on
# two cores would wait for each other. On one core a second process would only cost memory.
CORES := $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
WORKERS ?= $(shell [ $(CORES) -gt 1 ] && echo 2 || echo 0)
TEST_ENV := OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo
	$(BIN)/python -m bench.demo

test: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# bench imports ditcache by name. The type checker does not follow an editable installation, and the
# folder may be called otherwise: it finds it through a link.
lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/named && ln -sfn ../.. $(VENV)/named/ditcache
	PYTHONPATH=$(CURDIR)/$(VENV)/named $(BIN)/basedpyright --pythonpath $(BIN)/python

bench: $(VENV)/.test
	$(BIN)/python -m bench.micro_results --out bench/results/micro.json
	$(BIN)/python -m bench.overhead --out bench/results/overhead.json
	$(BIN)/python -m bench.cold --out bench/results/cold.json
	$(BIN)/python -m bench.exact --out bench/results/exact.json
	$(BIN)/ditcache bench flux-emoji --budgets 2,3,5,7
	$(BIN)/ditcache bench dit-digits --budgets 2,3,5,7
	$(BIN)/python -m bench.coverage --out bench/results/coverage.json
	$(BIN)/python -m bench.real_size --out bench/results/real-size.json

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# torch first and by itself: constraints.txt then keeps every later resolution from replacing it.
# An interpreter that is gone or too old (a moved folder, a copied tree) means starting afresh.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "ditcache needs Python 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	@$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt "$(TORCH)"
	@touch $@

$(VENV)/.demo: EXTRAS := demo
$(VENV)/.test: EXTRAS := test
$(VENV)/.lint: EXTRAS := test,lint
$(VENV)/.demo $(VENV)/.test $(VENV)/.lint: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@
