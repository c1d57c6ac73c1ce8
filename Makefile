# Everything runs in .venv, made from the system's python3 the first time a target needs it.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu make test    takes torch from that wheel index.

PYTHON ?= python3
RUNS ?= runs
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo study test lint clean

demo: $(INSTALLED)
	$(BIN)/personascope demo --out $(RUNS)/demo

study: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/personascope run studies/persona_features.py --out $(RUNS)/persona_features --workers $(WORKERS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --quiet

# Without its dependencies, because an index of torch wheels need not hold the pinned versions of the others.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -z "$(TORCH_INDEX)" || $(BIN)/pip install --quiet --no-deps --index-url "$(TORCH_INDEX)" -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[train,rl,inspect,gguf,dev]"
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
