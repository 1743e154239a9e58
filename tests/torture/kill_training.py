"""Hundreds of kill -9 at random instants of a training; prints a table for ``reports/torture/``.

    python -m tests.torture.kill_training [--kills 200]

Each round forks a process that trains swae3d at scale tiny, kills it after a random time, reads all that is
left as any reader would, and resumes the run to its end. A round is good where every file can be read, rows are
complete and without a gap, the status does not speak of a step whose row is not there, nothing stays aside, and the
final weights are bitwise those of a run that was never killed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import hpcstab.models.swae3d.task  # loaded before the forks, so that the kills fall into the training
import hpcstab.training.build  # noqa: F401
from hpcstab.checkpoint import read_checkpoint
from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.execute import execute
from hpcstab.identity import create_run
from hpcstab.judgement import judge
from hpcstab.metrics import read_events, read_history, read_rows
from hpcstab.rundir import RunDir, begin_attempt, read_json

LONGEST_S = 1.6
SETTINGS = ["trainer.max_steps=50", "trainer.evaluate_every={steps: 5}", "trainer.checkpoint_every={steps: 2}"]


def train(run: RunDir) -> None:
    torch.set_num_threads(1)
    execute(run, begin_attempt(run, {}))


def final_weights(run: RunDir) -> dict[str, torch.Tensor]:
    status = read_json(run.status_json)
    assert status is not None
    weights: dict[str, torch.Tensor] = read_checkpoint(run.checkpoint(status["step"]))[0]["network"]
    return weights


def problems(run: RunDir) -> list[str]:
    """What a reader could not read, or would be told wrongly."""
    found = []
    for path in run.path.rglob("*.json"):
        name = path.relative_to(run.path)
        if any(part.endswith(".aside") for part in name.parts):
            continue  # what is being written, which no reader looks at
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(f"{name} cannot be read")
    steps = list(read_history(run.metrics_csv))
    if steps != list(range(len(steps))):
        found.append("metrics.csv has a gap")
    read_events(run.events_jsonl)
    status = read_json(run.status_json)
    if status is not None and status["step"] > len(steps):
        found.append("status.json is ahead of metrics.csv")
    judge(run)
    return found


def problems_after_resume(run: RunDir, expected: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong once the run has been resumed to its end."""
    train(run)
    found = problems(run)
    if list(run.path.rglob("*.aside")):
        found.append("an aside file stays")
    weights = final_weights(run)
    if not all(torch.equal(weights[name], expected[name]) for name in expected):
        found.append("the final weights differ")
    return found


def phase(run: RunDir) -> str:
    """How far the run had come when it was killed."""
    status = read_json(run.status_json)
    if status is not None and status["state"] == "completed":
        return "after the end"
    if read_rows(run.metrics_csv):
        return "training"
    return "before step 0" if run.status_json.exists() or run.attempt_numbers() else "before the attempt"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    kills = parser.parse_args().kills
    experiment = load_experiment("swae3d")
    resolved = resolve(experiment, "cured", "tiny", parse_overrides(SETTINGS))
    generator = random.Random(0)
    bad: list[str] = []
    phases: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = create_run(Path(folder), experiment, resolved, seed=0)
        train(whole)
        expected = final_weights(whole)
        for _ in range(kills):
            run = create_run(Path(folder), experiment, resolved, seed=0)
            process = multiprocessing.get_context("fork").Process(target=train, args=(run,))
            process.start()
            time.sleep(generator.uniform(0.0, LONGEST_S))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            phases[phase(run)] += 1
            bad += problems(run)
            bad += problems_after_resume(run, expected)
    print("| killed | rounds |\n|---|---|")
    for name, count in sorted(phases.items()):
        print(f"| {name} | {count} |")
    print(f"\n{kills} kills, {len(bad)} problems")
    for line in bad:
        print(f"- {line}")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
