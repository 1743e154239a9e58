"""The story of a log of anybody's training: what its lines say about the end, and what to do about that."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpcstab.explain.case import Command
from hpcstab.explain.causes import Cause, CauseName, Line, ranked
from hpcstab.explain.log_causes import causes_in_log, shortened
from hpcstab.explain.log_scan import LogScan
from hpcstab.explain.story import Section, Story
from hpcstab.explain.tracebacks import first_of_chain
from hpcstab.units import size

_JOB = re.compile(r"\b(?:JOB|StepId=|STEP|Job|job)[ =]?(\d{2,}(?:_\d+)?)")
_NEXT: dict[CauseName, tuple[str, str]] = {
    "nonfinite_operation": (
        "hpcstab doctor CHECKPOINTS",
        "which of its checkpoints are still healthy; then hpcstab.harden in the loop writes a capsule of the next such"
        " step, and `hpcstab.replay` on that names the operation",
    ),
    "precision_overflow": ("hpcstab doctor CHECKPOINTS", "which of its checkpoints are healthy; bf16 has fp32's range"),
    "out_of_memory": (
        "sacct -j {job} -D -o JobID,State,ExitCode,MaxRSS,ReqMem,NodeList",
        "which memory: the GPU's is CUDA's message, the host's is Slurm's state; then a smaller batch, or more --mem",
    ),
    "disk_full_or_quota": ("df -h . && quota -s", "make room, then go on from a checkpoint that the doctor passes"),
    "hanging": (
        "sacct -j {job} -D -o JobID,State,ExitCode,NodeList",
        "which rank ended first; its own log has the reason",
    ),
    "data_error": ("python -c 'list(DATASET)'", "one pass over the data in one process, without workers"),
}  # fmt: skip
_SLURM = ("sacct -j {job} -D -o JobID,State,ExitCode,Elapsed,Timelimit,NodeList", "what Slurm knows of its attempts")


def story_of_log(scan: LogScan) -> Story:
    """The first cause that applies; where nothing does, what was looked for and its last words."""
    name = scan.path.name
    causes = ranked(list(causes_in_log(scan, name))) or (_unknown(scan),)
    headline = f"{scan.path}: {scan.num_lines:,} lines, {size(scan.num_bytes)}"
    sections = [section for section in _sections(scan) if section.lines]
    return Story("log", headline, causes, tuple(sections), _commands(scan, causes[0]), _figures(scan))


def _unknown(scan: LogScan) -> Cause:
    reason = (
        "no traceback, no NaN, no word of CUDA, NCCL, Slurm or the kernel about an end; it may still be written to"
        if scan.num_bytes
        else "the log is empty: what died before Python is in the logs of sbatch or submitit"
    )
    last = tuple(Line(f"{scan.path.name}:{scan.num_lines}", shortened(text)) for text in scan.tail[-1:])
    return Cause("unknown", "certain", reason, last)


def _sections(scan: LogScan) -> Iterator[Section]:
    if scan.nonfinite is not None:
        found = scan.nonfinite
        at = f"step {found.step}" if found.step is not None else "a step that the log does not name"
        yield Section("where", (f"{found.name} {found.value} at {at}, line {found.hit.line:,}",))
    if scan.tracebacks:
        raised = first_of_chain(scan.tracebacks)
        lines = [f"{raised}, line {raised.line:,}"]
        if raised.own:
            lines.append(f"{raised.own.file}:{raised.own.line}, in {raised.own.function}")
            lines += [f"    {raised.own.text}"] if raised.own.text else []
        yield Section("raised", tuple(lines))
    yield Section("last words", tuple(shortened(text) for text in scan.tail))


def _commands(scan: LogScan, cause: Cause) -> tuple[Command, ...]:
    if not cause.about.bad_news:
        return ()
    words = " ".join(seen.last.text for seen in scan.sightings.values())
    job = _JOB.search(words)
    default = _SLURM if job else (f"tail -n 200 {scan.path}", "its last words")
    line, why = _NEXT.get(cause.name, default)
    return (Command(line.format(job=job[1] if job else "JOB"), why),)


def _figures(scan: LogScan) -> dict[str, object]:
    return {
        "path": str(scan.path),
        "num_bytes": scan.num_bytes,
        "num_lines": scan.num_lines,
        "first_nonfinite": None
        if scan.nonfinite is None
        else {
            "line": scan.nonfinite.hit.line,
            "step": scan.nonfinite.step,
            "name": scan.nonfinite.name,
            "value": scan.nonfinite.value,
        },
        "tail": scan.tail,
    }
