# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test lint docs bench models clean

run: $(STAMP) models
	$(BIN)/outlay compare src/outlay/examples/quickstart.toml --out runs/quickstart

test: $(STAMP) models lint docs
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python docs/generate.py --check
	$(BIN)/zensical build --strict --clean

bench: $(STAMP) models
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/longcodezip.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/puzzles.py
	$(BIN)/python benchmarks/robots.py
	$(BIN)/python benchmarks/basir.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/kv_prediction.py
	$(BIN)/python benchmarks/schedule.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/day.py
	$(BIN)/python benchmarks/rl.py
	$(BIN)/python benchmarks/vision.py
	$(BIN)/python benchmarks/vision_frontier.py --size S
	$(BIN)/python benchmarks/vision_frontier.py --size M
	$(BIN)/python benchmarks/vision_towers.py
	$(BIN)/python benchmarks/vision_tokenisers.py

models: $(STAMP)
	$(BIN)/outlay models fetch

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "outlay needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist site runs
