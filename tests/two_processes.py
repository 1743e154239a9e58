"""Two ranks of one program, as two processes that meet over a file; each prints one JSON line a case."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

_PATIENCE_S = 200


def reports_of_two(module: str, meeting: Path, *words: str) -> list[dict[str, dict[str, Any]]]:
    """What each rank says of each case: ``python -m MODULE RANK MEETING WORDS...``, run to its end twice."""
    command = [sys.executable, "-m", module]
    ranks = [
        subprocess.Popen([*command, str(rank), str(meeting), *words], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=_PATIENCE_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    said = [[json.loads(line) for line in output.splitlines() if line.startswith("{")] for output in outputs]
    return [{report["case"]: report for report in each} for each in said]
