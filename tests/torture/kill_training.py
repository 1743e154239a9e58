"""Hundreds of kill -9 of a training, at random instants and in the midst of saves; ``reports/torture/`` has the table.

    python -m tests.torture.kill_training [--kills 200] [--out FILE]

Each round forks a process that trains swae3d at scale tiny and kills it: after a random time, or, in a quarter of the
rounds, while a checkpoint that was drawn before is being written. Then it reads all that is left as any reader would,
and resumes the run to its end. A round is good where every file can be read, rows are complete and without a gap,
the status does not speak of a step whose row is not there, every checkpoint with a name is whole, nothing stays aside
after the next start, and the final state is bitwise that of a run that was never killed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

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
from tests.training.test_gate import same

NUM_STEPS = 50
SAVE_EVERY = 2
LONGEST_SAVE_S = 0.02
SETTINGS = [
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.evaluate_every={steps: 5}",
    f"trainer.checkpoint_every={{steps: {SAVE_EVERY}}}",
]
HEAD = """# kill -9 at random instants and in the midst of saves

Made by `python -m tests.torture.kill_training --kills {kills} --out {out}` (part of `make torture`): rounds of
swae3d@cured at scale `tiny` ({steps} steps, a checkpoint every {every}, an evaluation every 5; gate, guards,
saves in a thread of their own), killed at a random time of its length or while a checkpoint that was drawn
before is being written, read as any reader would, then resumed to the end. A problem is a file that cannot be
read, a checkpoint with a name that is not whole, a gap in the history, a status ahead of its rows, a file left
aside after the next start, or a final state (weights, optimizer, guards) that is not bitwise that of a run that
was never killed.
"""


@dataclass
class Tally:
    """What the rounds came to: how many were killed when, and what was wrong afterwards."""

    phases: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def torture(kills: int, root: Path, seed: int = 0) -> Tally:
    """So many rounds under ``root``; a quarter of them dies during a save."""
    experiment = load_experiment("swae3d")
    resolved = resolve(experiment, "cured", "tiny", parse_overrides(SETTINGS))
    generator, tally = random.Random(seed), Tally()
    whole = create_run(root, experiment, resolved, seed=0)
    train(whole)  # here and not in a fork, so that no fork spends time on what torch sets up once
    length_s = length(create_run(root, experiment, resolved, seed=0))
    expected = final_state(whole)
    for number in range(kills):
        run = create_run(root, experiment, resolved, seed=0)
        process = begin(run)
        assert process.pid is not None
        if tally.phases["during a save"] < (number + 1) / 4:
            stop_during_save(run, process.pid, generator)
        else:
            time.sleep(generator.uniform(0.0, length_s))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        tally.phases[phase(run)] += 1
        tally.problems += problems(run)
        tally.problems += problems_after_resume(run, expected)
    return tally


def begin(run: RunDir) -> ForkProcess:
    process = multiprocessing.get_context("fork").Process(target=train, args=(run,))
    process.start()
    return process


def length(run: RunDir) -> float:
    """Seconds of a training that nobody kills."""
    started = time.perf_counter()
    begin(run).join()
    return time.perf_counter() - started


def train(run: RunDir) -> None:
    torch.set_num_threads(1)
    execute(run, begin_attempt(run, {}))


def stop_during_save(run: RunDir, pid: int, generator: random.Random) -> None:
    """Until the process is held still with a checkpoint half written, at or after a step that is drawn; or has ended.

    Where within the save is random; a save that was over by then is let go, and the next one is met sooner.
    """
    step = generator.randrange(SAVE_EVERY, NUM_STEPS // 2, SAVE_EVERY)
    longest_s = LONGEST_SAVE_S
    while has_begun_save(run, step, pid):
        time.sleep(generator.uniform(0.0, longest_s))
        os.kill(pid, signal.SIGSTOP)
        if has_ended(pid, os.WSTOPPED) or list(run.checkpoints.glob(".*")):
            return
        os.kill(pid, signal.SIGCONT)
        longest_s /= 2


def has_begun_save(run: RunDir, step: int, pid: int) -> bool:
    """True once a checkpoint of the step or a later one is being written, False if the process ended before."""
    while not has_ended(pid, os.WNOHANG):
        if any(path.name >= f".{run.checkpoint(step).name}" for path in run.checkpoints.glob(".step_*")):
            return True
        time.sleep(0.0005)
    return False


def has_ended(pid: int, option: int) -> bool:
    """Whether the child has ended; ``os.WSTOPPED`` waits until it has or stands still, ``os.WNOHANG`` for nothing."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | option)
    return found is not None and found.si_code != os.CLD_STOPPED


def final_state(run: RunDir) -> dict[str, Any]:
    status = read_json(run.status_json)
    assert status is not None
    state = read_checkpoint(run.checkpoint(status["step"]))[0]
    return {part: state[part] for part in ("network", "optimizer", "guarding", "step", "update")}


def problems(run: RunDir) -> list[str]:
    """What a reader could not read, or would be told wrongly."""
    found = []
    for path in run.path.rglob("*.json"):
        name = path.relative_to(run.path)
        if any(part.endswith((".aside", ".old")) for part in name.parts):
            continue  # what is being written, which no reader looks at
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(f"{name} cannot be read")
    for folder in run.checkpoints.glob("step_*"):
        read_checkpoint(folder)
    steps = list(read_history(run.metrics_csv))
    if steps != list(range(len(steps))):
        found.append("metrics.csv has a gap")
    read_events(run.events_jsonl)
    status = read_json(run.status_json)
    if status is not None and status["step"] > len(steps):
        found.append("status.json is ahead of metrics.csv")
    judge(run)
    return found


def problems_after_resume(run: RunDir, expected: dict[str, Any]) -> list[str]:
    """What is wrong once the run has been resumed to its end."""
    train(run)
    found = problems(run)
    if list(run.path.rglob("*.aside")) + list(run.path.rglob("*.old")):
        found.append("a file stays aside")
    if not same(final_state(run), expected):
        found.append("the final state differs")
    return found


def phase(run: RunDir) -> str:
    """How far the run had come when it was killed."""
    if list(run.checkpoints.glob(".*")):
        return "during a save"
    status = read_json(run.status_json)
    if status is not None and status["state"] == "completed":
        return "after the end"
    if read_rows(run.metrics_csv):
        return "training"
    return "before step 0" if run.status_json.exists() or run.attempt_numbers() else "before the attempt"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the table here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = torture(options.kills, Path(folder))
    lines = ["| killed | rounds |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(tally.phases.items())]
    lines += [f"| problems | {len(tally.problems)} |", *(f"\n- {problem}" for problem in tally.problems)]
    print(*lines, sep="\n")
    if options.out is not None:
        head = HEAD.format(kills=options.kills, out=options.out, steps=NUM_STEPS, every=SAVE_EVERY)
        when = f"{datetime.date.today()}, torch {torch.__version__}, {os.cpu_count()} cores, one thread, local disk"
        options.out.write_text("\n".join([head, when, "", *lines]) + "\n", encoding="utf-8")
    raise SystemExit(1 if tally.problems else 0)


if __name__ == "__main__":
    main()
