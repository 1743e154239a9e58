# Every target sets up what it needs; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup submit status watch report rerun test test-slow test-slurm test-gpu slurm-up slurm-down torture check bench reports clean

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
HPCSTAB := $(VENV)/bin/hpcstab

MODEL ?= swae3d
SUBMIT_OPTIONS := $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(VARIANTS),--variants $(VARIANTS)) \
	$(if $(SEEDS),--seeds $(SEEDS)) $(if $(SCALE),--scale $(SCALE)) $(ARGS)

RERUN_OPTIONS := $(if $(FROM),--from $(FROM)) $(WITH:%=--with %) $(foreach pair,$(SET),--set '$(pair)') \
	$(if $(CLUSTER),--cluster $(CLUSTER)) $(ARGS)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  options: MODEL=swae3d VARIANTS=before,after,cured SEEDS=0-2 SCALE=quick CLUSTER=local ARGS='--detach'"

setup: $(READY)  ## virtual environment with pinned dependencies

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("hpcstab needs Python >= 3.11, got %s; set PYTHON=..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

submit: $(READY)  ## train before, after and cured of MODEL and end with the report
	$(HPCSTAB) submit $(MODEL) $(SUBMIT_OPTIONS)

status: $(READY)  ## what every run is doing
	$(HPCSTAB) status

watch: $(READY)  ## the same, refreshed
	$(HPCSTAB) status --watch 2

report: $(READY)  ## report of the newest campaign of MODEL
	$(HPCSTAB) report $(MODEL)

rerun: $(READY)  ## go on from a checkpoint: RUN=... FROM=last|best|healthy|STEP|FILE WITH='fix fix' SET='k=v k=v'
	$(HPCSTAB) rerun $(or $(RUN),$(error make rerun RUN=... wants a run; `make status` lists them)) $(RERUN_OPTIONS)

test: $(READY)  ## all quick tests (at most 5 minutes)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m 'not slow and not slurm'

torture: $(READY)  ## hundreds of kills, hundreds of faults: the tables of reports/torture and reports/fault-matrix
	$(VENV)/bin/python -m tests.torture.kill_training --out reports/torture/kill-training.md
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.torture.fault_matrix --out reports/fault-matrix

test-slow: $(READY)  ## tests that take minutes (at most 20 minutes)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m slow

check: $(READY)  ## format, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy jobs/lab/lab.py

slurm-up:  ## the lab: a real Slurm on this machine (root, apt); OPTIONS='--no-accounting --user-signal'
	$(PYTHON) jobs/lab/lab.py up $(OPTIONS)

slurm-down:  ## stop the lab; leaves nothing behind
	$(PYTHON) jobs/lab/lab.py down

test-slurm: $(READY)  ## tests on real Slurms, four side by side (at most 15 minutes; root, apt)
	$(PYTHON) jobs/lab/lab.py install
	OMP_NUM_THREADS=1 HPCSTAB_REQUIRE_LAB=1 $(VENV)/bin/python -m pytest -n 4 --dist loadgroup -m slurm

test-gpu: $(READY)  ## what can only be seen on a GPU: no step waits for it, the fault matrix, replay
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/stability tests/faults/test_matrix.py -k "gpu or fault_is_found or replay"

bench: $(READY)  ## timings of start-up, status, a hardened step and the doctor's scan, as printed figures
	$(VENV)/bin/python -m tests.benchmarks.startup
	$(VENV)/bin/python -m tests.benchmarks.log_scan
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.benchmarks.step_cost
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.benchmarks.checkpoints
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.benchmarks.doctor_scan

reports: $(READY)  ## rebuild the reference reports under reports/ (tens of minutes each)
	$(HPCSTAB) submit swae3d --scale small --seeds 3-5 --wait
	$(HPCSTAB) report swae3d --out reports/swae3d-small
	$(HPCSTAB) data fetch mricron-data
	for model in swae3d vae2d wavessm liquidreg xray2ctpa; do \
		$(HPCSTAB) data fetch $$model && $(HPCSTAB) submit --campaign $${model}_real --scale small --wait && \
		$(HPCSTAB) report $$model --out reports/$$model-small-real || exit; done

clean:  ## remove the virtual environment and caches, never runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
