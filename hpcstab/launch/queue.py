"""All runs of a root, or of a campaign, as rows; without torch and pandas, 200 of them in a moment."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcstab.errors import RunError
from hpcstab.launch.answers import scheduler_answers
from hpcstab.rundir import RunDir, find_runs, read_json
from hpcstab.state.answers import Answers
from hpcstab.state.evidence import OPEN, RESULTS, State, collect, number
from hpcstab.state.gpu_hours import gpu_hours
from hpcstab.state.ledger import Job, Ledger, find_job, jobs_by_run, ledger_path, read_ledger, read_ledgers
from hpcstab.state.rule import answer

_SEED = re.compile(r"_s(\d+)_[0-9a-f]{8}$")


@dataclass(frozen=True)
class RunState:
    """One run: its state, who said so and how long ago, and the last figures of its trainer."""

    run_id: str
    model: str
    variant: str
    seed: int | None
    campaign: str | None
    state: State
    source: str
    age_s: float
    detail: str | None
    step: int | None
    total_steps: int | None
    loss: float | None
    grad_norm: float | None
    metric: str | None
    value: float | None
    unit: str | None
    eta_s: float | None
    attempt: int | None
    gpu_hours: float | None
    node: str | None
    problem: str | None

    @property
    def is_open(self) -> bool:
        """Not known to have ended."""
        return self.state in OPEN

    @property
    def is_result(self) -> bool:
        """The training ended as trainings end; diverged is a result."""
        return self.state in RESULTS

    def as_json(self) -> dict[str, Any]:
        """For programs; what is not finite is spelled as text, as in status.json."""
        return {
            name: str(value) if isinstance(value, float) and value - value != 0 else value
            for name, value in asdict(self).items()
        }


def run_states(root: Path, campaign: str | None = None) -> list[RunState]:
    """The runs under ``root``; those of a campaign in its order.

    Raises:
        LaunchError: the campaign is unknown or its ledger cannot be read.
    """
    if campaign is not None:
        ledger = read_ledger(ledger_path(root, campaign))
        answers = None
        if ledger.slurm:
            answers = scheduler_answers(root)
            ledger = read_ledger(ledger_path(root, campaign))  # asking can have found the ids of its jobs
        return [run_state(RunDir(root / job.run_id), ledger, job, answers) for job in ledger.jobs]
    ledgers = read_ledgers(root)[0]
    answers = None
    if any(ledger.slurm for ledger in ledgers):
        answers = scheduler_answers(root)
        ledgers = read_ledgers(root)[0]
    jobs = jobs_by_run(ledgers)
    rows = [(run, *jobs.get(run.run_id, (None, None))) for run in find_runs(root)]
    return [run_state(run, ledger, job, answers) for run, ledger, job in rows]


def state_of(run: RunDir) -> RunState:
    """One run, with the campaign that it belongs to."""
    root = run.path.parents[2]
    ledger, job = find_job(root, run.run_id)
    if ledger is None or ledger.slurm is None:
        return run_state(run, ledger, job)
    answers = scheduler_answers(root)
    ledger, job = find_job(root, run.run_id)
    return run_state(run, ledger, job, answers)


def run_state(
    run: RunDir, ledger: Ledger | None = None, job: Job | None = None, answers: Answers | None = None
) -> RunState:
    """One run, and what of it cannot be read as its ``problem``: one bad file hides no other run.

    ``answers``: Slurm's last, for a job of Slurm.
    """
    now = time.time()
    seen = collect(run, ledger, job)
    found = answer(seen, now, answers)
    status, attempt = seen.status or {}, seen.attempt or {}
    last = _mapping(status.get("last"))
    metric, value, unit = _primary(run, status)
    seed = _SEED.search(run.path.name)
    return RunState(
        run_id=run.run_id,
        model=run.path.parts[-3],
        variant=run.path.parts[-2],
        seed=int(seed[1]) if seed else None,
        campaign=ledger.campaign if ledger else None,
        state=found.state,
        source=found.source,
        age_s=max(0.0, now - found.time),
        detail=found.detail,
        step=_whole(status.get("step")),
        total_steps=_whole(status.get("total_steps")),
        loss=number(last.get("loss")),
        grad_norm=number(last.get("grad_norm")),
        metric=metric,
        value=value,
        unit=unit,
        eta_s=_eta_s(status, last, attempt) if found.state == "running" else None,
        attempt=_whole(attempt.get("attempt")),
        gpu_hours=gpu_hours(seen, found.state == "running", now),
        node=str(attempt["node"]) if "node" in attempt else None,
        problem=seen.problem,
    )


def _primary(run: RunDir, status: Mapping[str, Any]) -> tuple[str | None, float | None, str | None]:
    """Name, last value and unit of the primary metric; its name stands with the best value so far."""
    scores = _mapping(status.get("eval"))
    name = _mapping(status.get("best")).get("metric")
    try:
        if name is None and scores:  # evaluated, but never with a finite value
            name = _mapping(run.identity().get("compare")).get("primary")
        metrics = (read_json(run.task_json) or {}).get("metrics") if name else None
    except RunError:
        return None, None, None
    if not isinstance(name, str):
        return None, None, None
    units = [
        _mapping(entry).get("unit")
        for entry in (metrics if isinstance(metrics, list) else ())
        if _mapping(entry).get("name") == name
    ]
    return name, number(scores.get(name)), units[0] if units else None


def _eta_s(status: Mapping[str, Any], last: Mapping[str, Any], attempt: Mapping[str, Any]) -> float | None:
    """Seconds to the last step: by the pace of the whole attempt, evaluations included, once it has made a step."""
    step, total = number(status.get("step")), number(status.get("total_steps"))
    if step is None or total is None or status.get("attempt") != attempt.get("attempt"):
        return None
    pace = number(last.get("step_time_s"))
    start, heartbeat = number(attempt.get("start")), number(status.get("time"))
    first = number(status.get("first_step", 0 if attempt.get("attempt") == 1 else None))
    if first is not None and step > first and start is not None and heartbeat is not None:
        pace = (heartbeat - start) / (step - first)
    return max(0.0, total - step) * pace if pace is not None else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
