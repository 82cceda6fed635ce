# `make demo`, `make test` and `make docs` set up all they need in .venv; the second time they install nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Processes of `make test`, each with one thread and up to two gigabytes of memory.
WORKERS ?= 2

.PHONY: demo test slurm lint docs oc20-mini molecules bench-gpu clean

demo: $(STAMP)
	$(BIN)/dens demo --out demo

test: $(STAMP) lint slurm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# tests/cluster starts a Slurm of its own on this machine; without these programs those tests are skipped. As root they are
# installed.
slurm:
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } || \
		echo "no Slurm here: tests/cluster/test_loopback.py will be skipped"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Real data, where the folder ../shared/data exists: raw frames to LMDBs.
oc20-mini: $(STAMP)
	for split in train val_id val_ood; do \
		$(BIN)/dens data oc20 ../shared/data/oc20_mini/s2ef/$$split data/oc20_mini/$$split --workers 2 || exit 2; \
	done

molecules: $(STAMP)
	$(BIN)/dens data molecules ../shared/data/molecules/rmd17_ethanol_train.extxyz.xz data/rmd17_ethanol \
		--test ../shared/data/molecules/rmd17_ethanol_test.extxyz.xz
	$(BIN)/dens data molecules ../shared/data/molecules/acac_train_300K.extxyz.xz data/acac_300k --split 450,50 \
		--test ../shared/data/molecules/acac_test_300K.extxyz.xz

# All that needs a GPU, in parts of at most ten minutes.
bench-gpu: $(STAMP)
	PYTHON=$(abspath $(BIN)/python) sh benchmarks/gpu.sh

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo site
