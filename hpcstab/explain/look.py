"""What a target is, and its story: a run, a log, a checkpoint."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from hpcstab.explain.ask import Question
from hpcstab.explain.facts import Facts, gather
from hpcstab.explain.run_story import story_of_run
from hpcstab.explain.story import Story
from hpcstab.rundir import RunDir, find_run


def look(target: str, root: Path, replays: bool, limit_s: float) -> Story:
    run = find_run(target, root)
    return story_of_run(_with_replay(gather(run, time.time()), replays, limit_s))


def _with_replay(facts: Facts, replays: bool, limit_s: float) -> Facts:
    capsules = sorted(facts.run.capsules.glob("step_*"))
    if not capsules:
        return replace(facts, no_replay="the run has no capsule")
    asked = Question("replay", str(capsules[0])).wait(limit_s)
    return replace(facts, replay=asked.answer, no_replay=asked.reason)
