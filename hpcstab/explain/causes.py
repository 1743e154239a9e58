"""The closed list of causes, in the order in which one goes before another that is equally sure.

First what made the numbers useless, then what ended the process, then what only stands still: a run that was NaN for
ten hours and then met its time limit has died of the NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hpcstab.errors import EXIT_BAD_NEWS, EXIT_NO_ANSWER, EXIT_OK

CauseName = Literal[
    "batchnorm_poisoned",
    "bad_data",
    "precision_overflow",
    "nonfinite_operation",
    "not_reproducible",
    "divergence_finite",
    "evaluation_empty",
    "out_of_memory",
    "disk_full_or_quota",
    "missing_module_or_environment",
    "data_error",
    "crash_in_code",
    "refused",
    "node_failure",
    "preempted",
    "time_limit",
    "cancelled_by_user",
    "stopped_by_signal",
    "hanging",
    "never_started",
    "lost",
    "not_learning",
    "masked",
    "checkpoint_unusable",
    "waiting",
    "still_running_healthy",
    "completed_healthy",
    "checkpoint_healthy",
    "unknown",
]
Confidence = Literal["certain", "likely", "guess"]
CONFIDENCES: tuple[Confidence, ...] = ("certain", "likely", "guess")


@dataclass(frozen=True)
class CauseClass:
    """What a cause means, what would make it certain, and what the command ends with."""

    meaning: str
    confirm: str
    exit_code: int = EXIT_BAD_NEWS

    @property
    def bad_news(self) -> bool:
        """Something is wrong, or it cannot be told."""
        return self.exit_code != EXIT_OK


CAUSES: dict[CauseName, CauseClass] = {
    "batchnorm_poisoned": CauseClass(
        "BatchNorm running statistics are not finite while the weights are: training goes on, every evaluation fails",
        "`hpcstab doctor` on its last checkpoint names the buffers",
    ),
    "bad_data": CauseClass(
        "the batch itself held a value that is not finite, or far from all others",
        "`hpcstab data check`, or `hpcstab replay` without the sample",
    ),
    "precision_overflow": CauseClass(
        "a 16-bit format could not hold a value that fp32 holds",
        "`hpcstab replay`: the step is finite in fp32",
    ),
    "nonfinite_operation": CauseClass(
        "an operation made NaN or infinity: outside its domain, an overflow, 0 x inf",
        "`hpcstab replay` on a capsule of the step names the operation",
    ),
    "not_reproducible": CauseClass(
        "a step was not finite once and is when it runs again: hardware, or an operation without a fixed order",
        "`hpcstab replay` on the node that it failed on, and on another one",
    ),
    "divergence_finite": CauseClass(
        "the numbers stayed finite and ran away: a loss far above its best, or a declared failure condition",
        "the loss in metrics.csv, `hpcstab report`",
    ),
    "evaluation_empty": CauseClass(
        "an evaluation had no valid batch",
        "the events eval_batch_failed say what each batch raised",
    ),
    "out_of_memory": CauseClass(
        "GPU, host or shared memory ran out",
        "`sacct -j JOB -o State,ExitCode,MaxRSS`, or `dmesg` on the node",
    ),
    "disk_full_or_quota": CauseClass("a file could not be written", "`df -h` and `quota` for the run root"),
    "missing_module_or_environment": CauseClass(
        "Python, a package, a library or a driver is not there where the job ran",
        "start `python -c 'import ...'` on that node",
    ),
    "data_error": CauseClass("the data could not be read", "`hpcstab data check` reads all of them"),
    "crash_in_code": CauseClass("the program raised, or crashed in native code", "the traceback in the log"),
    "refused": CauseClass("hpcstab itself could not go on, and says why", "the message"),
    "node_failure": CauseClass("the node, or its GPU, failed", "`sacct -j JOB -o State,NodeList`, `sinfo -R`"),
    "preempted": CauseClass("a job of higher priority took the node", "`sacct -j JOB -o State`"),
    "time_limit": CauseClass("the time limit was reached", "`sacct -j JOB -o State,Elapsed,Timelimit`"),
    "cancelled_by_user": CauseClass("somebody asked it to end", "the ledger's cancel request", EXIT_OK),
    "stopped_by_signal": CauseClass(
        "a signal ended it that nobody recorded asking for", "`sacct -j JOB`, the log of who shut the machine down"
    ),
    "hanging": CauseClass(
        "the process lives and takes no step, or ranks waited for one another until they gave up",
        "`py-spy dump --pid PID` on its node shows where it waits",
    ),
    "never_started": CauseClass("the job ended before Python had an attempt", "submitit's log under runs/.submissions"),
    "lost": CauseClass(
        "the process is gone and left no word",
        "`sacct -j JOB -o State,ExitCode`, `dmesg -T | grep -i oom` on its node",
    ),
    "not_learning": CauseClass("finite, and no better than a network that learned nothing", "`hpcstab report`"),
    "masked": CauseClass(
        "it looks finite because something hides what is not", "the column num_masked, the events step_refused"
    ),
    "checkpoint_unusable": CauseClass(
        "a checkpoint is damaged, cannot be read, or would run code", "`hpcstab doctor` on it"
    ),
    "waiting": CauseClass("it is in the queue", "`hpcstab status`", EXIT_OK),
    "still_running_healthy": CauseClass("it runs, and its numbers are fine so far", "`hpcstab status`", EXIT_OK),
    "completed_healthy": CauseClass("it completed, and nothing speaks against it", "`hpcstab report`", EXIT_OK),
    "checkpoint_healthy": CauseClass("the doctor found nothing in it", "`hpcstab doctor` on it", EXIT_OK),
    "unknown": CauseClass("what is there does not tell", "more of the log, or the run's folder", EXIT_NO_ANSWER),
}
_ORDER = {name: position for position, name in enumerate(CAUSES)}


@dataclass(frozen=True)
class Line:
    """One piece of evidence: what it says, and the file (with its line) or command that says so."""

    source: str
    text: str


@dataclass(frozen=True)
class Cause:
    """A cause that applies. ``reason`` is one sentence with the figures of this case."""

    name: CauseName
    confidence: Confidence
    reason: str
    evidence: tuple[Line, ...] = ()

    @property
    def about(self) -> CauseClass:
        return CAUSES[self.name]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "cause": self.name,
            "confidence": self.confidence,
            "reason": self.reason,
            "confirm": None if self.confidence == "certain" else self.about.confirm,
            "evidence": [vars(line) for line in self.evidence],
        }


def ranked(causes: list[Cause]) -> tuple[Cause, ...]:
    """The surest first, then in the order of the list; each cause once, with all of its evidence."""
    ordered = sorted(causes, key=lambda cause: (CONFIDENCES.index(cause.confidence), _ORDER[cause.name]))
    kept: dict[CauseName, Cause] = {}
    for cause in ordered:
        first = kept.setdefault(cause.name, cause)
        new = tuple(line for line in cause.evidence if line not in first.evidence)
        if first is not cause and new:
            kept[cause.name] = Cause(first.name, first.confidence, first.reason, first.evidence + new)
    return tuple(kept.values())
