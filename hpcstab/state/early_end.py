"""Why a job on Slurm ended before its first attempt: all there is, is what its shell and Python printed.

A folder that the nodes do not see shows itself here: without the run root Slurm cannot open the job's log, and the job
ends at once and leaves nothing; without the virtual environment its Python cannot be executed.
"""

from __future__ import annotations

import re
from pathlib import Path

from hpcstab.state.answers import JobAnswer
from hpcstab.state.evidence import Evidence
from hpcstab.state.ledger import raw_logs

_NOT_EXECUTED = re.compile(r"execve\(\): (.+): No such file or directory")
_NO_MODULE = re.compile(r"ModuleNotFoundError: (No module named .+)")
_TAIL_BYTES = 8192
_OURS = "hpcstab: "
_ECHO = "srun: error:"  # follows the reason and is not it


def why_not_started(seen: Evidence, answer: JobAnswer | None = None) -> str:
    """One line: the reason, and what to do where that is known; ``answer`` is Slurm's last about the job."""
    node = f"node {answer.node}" if answer is not None and answer.node else "its node"
    root = seen.run.path.parents[2]
    logs = raw_logs(root, seen.ledger, seen.job) if seen.ledger is not None and seen.job is not None else []
    lines = [line for path in logs for line in _last_lines(path)]
    if hidden := _first(_NOT_EXECUTED, lines):
        return f"{node} does not see {hidden}: install hpcstab on a file system that the nodes share"
    if hidden := _first(_NO_MODULE, lines):
        return f"{node}: {hidden}: install hpcstab on a file system that the nodes share"
    ended = "its job ended before its first attempt"
    own = [line.removeprefix(_OURS) for line in lines if line.startswith(_OURS)]
    if said := own or [line for line in lines if not line.startswith(_ECHO)]:
        return f"{ended}: {said[-1]}"
    if any(path.exists() for path in logs) or (answer is not None and not answer.could_not_launch):
        return f"{ended} and printed nothing"
    sees_not = "does not see" if answer is not None else "probably does not see"
    return f"{node} {sees_not} '{root}', or may not write there: put --root on a file system that the nodes share"


def _last_lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _first(pattern: re.Pattern[str], lines: list[str]) -> str | None:
    return next((found[1] for line in lines if (found := pattern.search(line))), None)
