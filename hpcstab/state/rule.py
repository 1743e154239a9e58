"""The one rule: what a run is doing, for ``status`` and for the report alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcstab.rundir import RunDir
from hpcstab.state.answers import Answers, read_answers
from hpcstab.state.evidence import Answer, Evidence, collect
from hpcstab.state.ledger import Job, Ledger, jobs_by_run, read_ledgers
from hpcstab.state.local import answer_on_machine
from hpcstab.state.slurm import answer_on_slurm


def answer(seen: Evidence, now: float, answers: Answers | None = None) -> Answer:
    """The state of a run; ``answers`` are Slurm's last, where the run is one of its jobs."""
    if seen.attempt is None and seen.problem is not None:
        return Answer("unknown", "folder", now)
    if seen.ledger is None or seen.job is None or seen.ledger.slurm is None:
        return answer_on_machine(seen, now)
    if seen.attempt is not None and seen.attempt.get("job_id") is None:
        return answer_on_machine(seen, now)  # resumed in the foreground: Slurm knows nothing of it
    return answer_on_slurm(seen, answers, now)


@dataclass(frozen=True)
class WrittenDown:
    """What stands under a root beside its runs: whose job each is, and what Slurm last said; nobody is asked."""

    jobs: dict[str, tuple[Ledger, Job]]
    answers: Answers

    @classmethod
    def under(cls, root: Path) -> WrittenDown:
        """Read once, for all runs of a root."""
        return cls(jobs_by_run(read_ledgers(root)[0]), read_answers(root))

    def state_of(self, run: RunDir, now: float) -> Answer:
        """What the run is doing, as far as files tell."""
        return answer(collect(run, *self.jobs.get(run.run_id, (None, None))), now, self.answers)
