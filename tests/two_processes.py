"""Two ranks of one program, as two processes that meet over a file; each prints one JSON line a case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.conftest import REPOSITORY

_PATIENCE_S = 200


def lines_of_two(
    module: str, meeting: Path, *words: str, patience_s: float = _PATIENCE_S
) -> list[list[dict[str, Any]]]:
    """What each rank prints as JSON: ``python -m MODULE RANK MEETING WORDS...``, run to its end twice.

    Raises:
        RuntimeError: a rank failed; with what it said on stderr.
    """
    command = [sys.executable, "-m", module]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(meeting), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=patience_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (said, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise RuntimeError(f"a rank ended with {rank.returncode} after {len(said.splitlines())} lines: {errors}")
    return [[json.loads(line) for line in said.splitlines() if line.startswith("{")] for said, _ in outputs]


def reports_of_two(module: str, meeting: Path, *words: str) -> list[dict[str, dict[str, Any]]]:
    """The same by the name in ``case`` of each line."""
    return [{report["case"]: report for report in said} for said in lines_of_two(module, meeting, *words)]


@contextmanager
def one_of_two(rank: int, meeting: str) -> Iterator[None]:
    """Join the other process; ends this one when the block has run through.

    By ``os._exit``: a thread of gloo may still hold the last tensors that were exchanged, and to let go of them it
    needs the interpreter. One that is being torn down ends such a thread by an exception that aborts the process (seen
    once in some fifty runs, as exit code -6 after all was done).
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    yield
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
