"""The batch script, to the letter: submitit makes it by a private function, which may change with any release."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcstab.launch import slurm
from hpcstab.launch.clusters import load_cluster
from hpcstab.launch.submit import shown_script

EXPECTED = """#!/bin/bash

# Parameters
#SBATCH --account=bcqs-delta-gpu
#SBATCH --array=0-2%2
#SBATCH --cpus-per-task=1
#SBATCH --gres=gpu:a100:1
#SBATCH --job-name=swae3d_YYYYMMDD_HHMMSS
#SBATCH --mem=1G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='{folder}/%A_%a_0_log.out'
#SBATCH --partition=gpuA100x4
#SBATCH --requeue
#SBATCH --signal=USR2@30
#SBATCH --time=60

# setup
trap : TERM
srun() {{ while :; do command srun "$@"; status=$?; [ $status = 143 ] || [ $status = 140 ] || return $status; done; }}
export OMP_NUM_THREADS=1
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}
work='{folder}'/work_${{SLURM_ARRAY_TASK_ID:-0}}.pkl
test -e '{folder}'/"$job"_submitted.pkl || cp "$work" '{folder}'/"$job"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '{folder}/%A_%a_%t_log.out' --cpus-per-task=1 \
{python} -u -m hpcstab.launch.slurm_step '{folder}'
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slurm, "job_variables", lambda threads: {"OMP_NUM_THREADS": str(threads)})
    return tmp_path / "my runs" / ".submissions" / "swae3d_YYYYMMDD_HHMMSS"


def test_to_the_letter(folder: Path) -> None:
    shown = shown_script(folder.parents[1], "swae3d", load_cluster("lab"), 3)
    assert shown == EXPECTED.format(folder=folder, python=sys.executable)


def test_one_run_is_no_array(folder: Path) -> None:
    shown = shown_script(folder.parents[1], "swae3d", load_cluster("lab"), 1)
    assert "--array" not in shown
    assert f"#SBATCH --output='{folder}/%j_0_log.out'\n" in shown


@pytest.mark.parametrize(
    ("variables", "num_runs", "pickle", "work"),
    [
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "9"}, 2, "7_1", "work_1"),
        ({"SLURM_JOB_ID": "9"}, 1, "9", "work_0"),
    ],
)
def test_a_job_whose_submitter_died_takes_its_work_from_the_folder(
    folder: Path, variables: dict[str, str], num_runs: int, pickle: str, work: str
) -> None:
    folder.mkdir(parents=True)
    script = shown_script(folder.parents[1], "swae3d", load_cluster("lab"), num_runs)
    setup = script.partition("# setup\n")[2].partition("# command")[0]
    (folder / f"{work}.pkl").write_text("the call")
    for expected in ("the call", "submitit's own"):
        subprocess.run(["bash", "-eu", "-c", setup], env={"PATH": "/usr/bin:/bin", **variables}, check=True)
        taken = folder / f"{pickle}_submitted.pkl"
        assert taken.read_text() == expected
        taken.write_text("submitit's own")
