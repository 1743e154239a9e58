"""A campaign as one array of Slurm jobs: its batch script, and ``python -m hpcstab.launch.slurm <ledger>``.

The submission is a process of its own, since submitit hands sbatch the environment that it has, and that must be
neither a job's nor one with the user's own defaults for sbatch.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission

# private, and pinned for it in pyproject.toml: no public call of submitit shows the script, and without srun
# there is no SlurmExecutor at all
from submitit.slurm.slurm import _make_sbatch_string

from hpcstab.errors import HpcstabError
from hpcstab.launch.job_body import run_job
from hpcstab.launch.ledger import updating
from hpcstab.launch.starter import job_variables
from hpcstab.state.ledger import Job, Ledger, submission_folder
from hpcstab.state.process import Process

_NUM_TIMEOUTS = 3  # submitit's default; the job body counts none
# 143 and 140: a TERM or USR2 ended Python before it could hold signals back. Were it left at that, a job in GraceTime
# would be FAILED and never be queued again; a job that is over cannot start a step, which ends the loop
_STARTS_AGAIN = (
    'srun() { while :; do command srun "$@"; status=$?; '
    "[ $status = 143 ] || [ $status = 140 ] || return $status; done; }"
)


def batch_script(path: Path, ledger: Ledger) -> str:
    """What sbatch gets for this ledger, to the letter; needs no Slurm."""
    folder = submission_folder(path)
    num_jobs = len(ledger.jobs)
    return str(
        _make_sbatch_string(
            command=_step_command(folder),
            folder=folder,
            map_count=num_jobs if num_jobs > 1 else None,
            **_parameters(path, ledger),
        )
    )


def submit_array(path: Path) -> None:
    """Queue the jobs of a ledger and write their ids into it."""
    with updating(path) as ledger:
        ledger.owner = Process.current()
    parameters = _parameters(path, ledger)
    for job in ledger.jobs:
        _work_of(path, job, parameters["time"]).dump(_work_file(path, str(job.index)))
    executor = _Executor(folder=submission_folder(path), max_num_timeout=_NUM_TIMEOUTS)
    executor.update_parameters(**parameters)
    with executor.batch():
        jobs = [executor.submit(run_job, *_work_of(path, job, parameters["time"]).args) for job in ledger.jobs]
    with updating(path) as ledger:
        for entry, job in zip(ledger.jobs, jobs, strict=True):
            entry.job_id = job.job_id
        ledger.owner = None


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's, but for what srun starts."""

    @property
    def _submitit_command_str(self) -> str:
        return _step_command(self.folder)


def _step_command(folder: Path) -> str:
    return f"{shlex.quote(sys.executable)} -u -m hpcstab.launch.slurm_step {shlex.quote(str(folder))}"


def _work_of(path: Path, job: Job, time_limit_min: int) -> DelayedSubmission:
    """The call that a job makes, as submitit pickles it."""
    work = DelayedSubmission(run_job, str(path.parents[1] / job.run_id), str(path), job.index)
    work.set_timeout(time_limit_min, _NUM_TIMEOUTS)
    return work


def _work_file(path: Path, index: str) -> Path:
    return submission_folder(path) / f"work_{index}.pkl"


def _parameters(path: Path, ledger: Ledger) -> dict[str, Any]:
    slurm = ledger.slurm
    assert slurm is not None
    ranks_per_node = ledger.resources.ranks_per_run // slurm.nodes
    return {
        "job_name": ledger.campaign,
        "partition": slurm.partition,
        "account": slurm.account,
        "gres": slurm.gres,
        "constraint": slurm.constraint,
        "nodes": slurm.nodes,
        "ntasks_per_node": ranks_per_node,
        "cpus_per_task": slurm.cpus_per_task,
        "mem": f"{slurm.mem_gib * ranks_per_node}G",
        "time": int(ledger.resources.time_limit_s // 60),
        "signal_delay_s": slurm.signal_lead_s,
        "array_parallelism": ledger.resources.parallel_runs,
        "wckey": None,
        "additional_parameters": {"requeue": True},
        "stderr_to_stdout": True,  # one raw log: what a job that died said last is not in the other file
        "setup": _setup(path, ledger.resources.threads_per_run),
        "srun_args": [
            f"--cpus-per-task={slurm.cpus_per_task}",  # since 22.05 srun does not take it over from the job
            *(["--kill-on-bad-exit=1"] if ledger.resources.ranks_per_run > 1 else []),  # the others would only wait
        ],
    }


def _setup(path: Path, threads: int) -> list[str]:
    """Before the job: its environment; and the shell waits for the trainer, which Slurm signals as well.

    submitit gives a job its pickle after sbatch has answered. Where the submitter died before that, the job takes the
    copy that was there before it.
    """
    exports = [f"export {name}={shlex.quote(value)}" for name, value in job_variables(threads).items()]
    folder = shlex.quote(str(submission_folder(path)))
    return [
        "trap : TERM",
        _STARTS_AGAIN,
        *exports,
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}",
        f"work={folder}/work_${{SLURM_ARRAY_TASK_ID:-0}}.pkl",
        f'test -e {folder}/"$job"_submitted.pkl || cp "$work" {folder}/"$job"_submitted.pkl',
    ]


def main(ledger: str) -> int:
    """Submit; an error is the last line of what is printed, since submit shows that one."""
    try:
        submit_array(Path(ledger))
    except (FailedJobError, FailedSubmissionError, HpcstabError, OSError) as error:
        print(_reason(error))
        return 1
    return 0


def _reason(error: BaseException) -> str:
    """sbatch's own words, of all that submitit prints around them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("sbatch: error:")), lines[-1] if lines else repr(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
