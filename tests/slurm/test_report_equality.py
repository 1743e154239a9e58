"""What is reported of runs on Slurm equals what is reported of local runs of the same seeds, bit for bit."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hpcstab.campaign import PlannedRun, plan
from hpcstab.launch.clusters import Cluster, load_cluster
from hpcstab.launch.queue import run_states
from hpcstab.launch.submit import submit
from hpcstab.report import Report, write_report
from hpcstab.report.load import load_runs
from hpcstab.report.page import make_page
from hpcstab.rundir import RunDir, read_attempts
from tests.slurm.conftest import Lab, wait_for_end

pytestmark = pytest.mark.slurm

TIMES_AND_MEMORY = {"time_s", "step_time_s", "peak_mem_gib", "seconds"}
"""Columns of metrics.csv and evals.csv that say how fast, and not what."""
OF_THE_PLACE = {"run_id", "campaign", "hours", "step_time_ms", "peak_mem_gib", "node"}
"""Columns of the report that say where and how fast."""


def trained(planned: list[PlannedRun], cluster: Cluster, root: Path) -> list[RunDir]:
    ledger = submit(planned, "swae3d", cluster, root)
    wait_for_end(root, ledger.campaign, 90)
    return [RunDir(root / state.run_id) for state in run_states(root, ledger.campaign)]


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV as text, so that equal means to the last digit."""
    with path.open(newline="") as file:
        return [{key: row[key] for key in row if key not in TIMES_AND_MEMORY} for row in csv.DictReader(file)]


def figures_of(report: Report) -> tuple[Any, ...]:
    """All that the report says in numbers and words but for where the runs were made and how fast."""
    runs = [{name: repr(row[name]) for name in row if name not in OF_THE_PLACE} for row in report.runs]
    return runs, report.columns, report.rows, report.verdict


def pictures_of(runs: list[RunDir]) -> dict[str, bytes]:
    loaded, broken = load_runs(runs)
    assert not broken
    return {picture.name: picture.png for picture in make_page(loaded, broken, None, datetime.now(UTC)).pictures}


def test_a_report_from_slurm_is_one_from_here(lab: Lab, tmp_path: Path) -> None:
    planned = plan(["swae3d"], ["after"], [0, 1], "tiny")
    on_slurm = trained(planned, load_cluster("lab"), tmp_path / "slurm")
    local = load_cluster("local").model_copy(update={"gpus_per_run": 0})
    here = trained(planned, local, tmp_path / "here")
    assert [run.path.parts[-2] for run in here] == [run.path.parts[-2] for run in on_slurm]
    for slurm_run, local_run in zip(on_slurm, here, strict=True):
        (there,), (now,) = read_attempts(slurm_run), read_attempts(local_run)
        assert (there["threads"], now["threads"]) == (1, 1)
        assert there["job_id"] != now["job_id"]
        rows = rows_of(slurm_run.metrics_csv)
        assert len(rows) > 3 and rows == rows_of(local_run.metrics_csv)
        evaluations = rows_of(slurm_run.evals_csv)
        assert evaluations and evaluations == rows_of(local_run.evals_csv)
    reports = [write_report(runs, tmp_path / name) for name, runs in (("a", on_slurm), ("b", here))]
    assert figures_of(reports[0]) == figures_of(reports[1])
    pictures = pictures_of(on_slurm)
    assert pictures and pictures == pictures_of(here)
