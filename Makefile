# make demo: a fresh clone to a model in a registry.   make test: lint, types, contracts, tests.
PYTHON ?= python3
BIN := .venv/bin
# Stages are run by name, so the environment comes first on the path, here and for every process started from here.
export PATH := $(CURDIR)/$(BIN):$(PATH)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt

# A process for each core, up to four: each holds torch.
PYTEST := OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: setup demo pipeline test guides networks claims paper clean
.DEFAULT_GOAL := demo

setup: .venv/.installed

.venv/.installed: requirements/core.in requirements/dev.in requirements/audio.in requirements/nodeps.txt requirements/constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"siren needs Python 3.11 or 3.12; this is {v}: make PYTHON=python3.11")'
	@echo "Installing into .venv (about 3 minutes, 3 GB)"
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements/core.in -r requirements/dev.in
	$(PIP) -r requirements/audio.in
	$(PIP) --no-deps -r requirements/nodeps.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(MAKE) --no-print-directory pipeline
	siren track flush
	siren promote
	@printf '\nThree things to try:\n'
	@printf '  open the report       %s\n' "$(CURDIR)/reports/index.html"
	@printf '  compare the runs      %s\n' "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --workers 1"
	@printf '  make a sound          %s\n' "$(BIN)/siren generate \"a dog barks while rain falls\" --out sounds"

# What `dvc repro` does, with the transformers side by side: they share nothing while they train. Each has its share of
# the cores, and the same bytes come out. What one of them could not do, the last line does again and says why.
JOBS ?= 3
SHARE = $(shell $(PYTHON) -c 'import os; print(max(1, (os.cpu_count() or 1) // $(JOBS)))')
pipeline:
	dvc repro tokenize
	-dvc stage list --name-only | grep '^stage1@' | OMP_NUM_THREADS=$(SHARE) xargs -n 1 -P $(JOBS) dvc repro --single-item
	dvc repro

test: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	$(PYTEST)

# The three guides that train: your own sounds, the paper's page, captioning (in an order that fills two workers); `make test`
# follows the others.
guides: setup
	$(PYTEST) -m slow --dist load tests/docs

# The small weights that the demo loads: the same stages with `weights: null`, longer, in a clone beside this tree.
networks: setup
	rm -rf tmp/networks && git clone --quiet . tmp/networks
	cd tmp/networks && siren params networks && dvc repro codec clap imagebind judge
	for name in codec clap imagebind judge; do \
		rm -rf weights/$$name && cp -r tmp/networks/models/$$name weights/$$name && \
		cp tmp/networks/reports/networks/$$name.json weights/$$name/quality.json; done

# The paper's claims about alignment and about its arms, each at three seeds on this corpus: reports/alignment.md and
# reports/claims.md. Stopped, it continues.
claims: setup
	dvc repro stage1 judge imagebind
	siren claims --alignment
	siren claims

# The paper's tables and figures beside what is run here, reports/paper.html: hours. Stopped, it continues.
paper: setup
	dvc repro evaluate
	siren paper --run

clean:
	rm -rf data models outputs reports/index.html reports/paper.html reports/data reports/analysis .siren tmp
