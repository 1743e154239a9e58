"""Whatever is asked to be removed, a run keeps what it is and the last checkpoint that it can go on from."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

from hpcstab.checkpoint import read_checkpoint, write_checkpoint
from hpcstab.errors import CheckpointError, ConfigError
from hpcstab.housekeeping.listing import sizes_under
from hpcstab.housekeeping.prune import PRUNABLE, Prunable, parse_parts, plan_pruning, prune
from hpcstab.housekeeping.sizes import PARTS, sizes_of
from hpcstab.rundir import RunDir, begin_attempt, bytes_below, create_run_dir, end_attempt, read_json, write_json
from tests.explain.test_ends import on_slurm

RECORDS = ("run.json", "config.yaml", "metrics.csv", "evals.csv", "events.jsonl", "status.json", "attempts/001.json")


def checkpoint(run: RunDir, name: str, *, healthy: bool = True, damaged: bool = False) -> None:
    folder = run.checkpoints / name
    step = int(name.split("_")[1])
    write_checkpoint(folder, {"weight": torch.full((16,), float(step))}, {"step": step, "healthy": healthy})
    if damaged:
        state = folder / "state.pt"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)


def ended_run(root: Path, seed: int = 0, state: str = "completed") -> RunDir:
    run = create_run_dir(root, "swae3d", "before", seed, "abcdef0123")
    write_json(run.run_json, {"run_id": run.run_id})
    attempt = begin_attempt(run, {"node": "n1"})
    if state != "running":
        end_attempt(run, attempt, state, 10)
    write_json(run.status_json, {"state": state, "attempt": attempt, "time": time.time()})
    for name in ("config.yaml", "metrics.csv", "evals.csv", "events.jsonl"):
        (run.path / name).write_text("")
    for folder in (run.capsules / "step_00000003", run.samples, run.logs):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "file").write_bytes(b"x" * 100)
    return run


def usable(run: RunDir) -> list[str]:
    """Names of the checkpoints that are labelled healthy and pass verification, oldest first."""
    found = []
    for folder in sorted(run.checkpoints.glob("step_*")):
        try:
            if read_checkpoint(folder)[1]["healthy"]:
                found.append(folder.name)
        except CheckpointError:
            continue
    return found


def pruned(root: Path, *parts: Prunable) -> list[Path]:
    plan = plan_pruning(root, sizes_under(root), parts)
    outcomes = list(prune(root, plan))
    assert all(problem is None for _, problem in outcomes)
    return [removal.path for removal, _ in outcomes]


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_asked_the_last_healthy_checkpoint_stays(tmp_path: Path, seed: int) -> None:
    """Random checkpoints: healthy, sick, damaged, repaired, a best one anywhere; random parts, asked twice."""
    rng, root = random.Random(seed), tmp_path / "runs"
    run = ended_run(root)
    names = [f"step_{step:08d}" for step in rng.sample(range(1, 99), rng.randint(0, 6))]
    names += [f"{name}_FIXED" for name in names if rng.random() < 0.3]
    for name in names:
        checkpoint(run, name, healthy=rng.random() < 0.6, damaged=rng.random() < 0.3)
    own = [name for name in names if not name.endswith("FIXED")]
    index = {"last": max(own, default=None), "best": rng.choice([None, *own]), "healthy": own}
    write_json(run.checkpoints / "index.json", index)
    before = usable(run)
    for _ in range(2):
        pruned(root, *rng.sample(list(PRUNABLE), rng.randint(1, len(PRUNABLE))))
        after = usable(run)
        assert bool(after) == bool(before)
        if before:
            newest = [name.removesuffix("_FIXED") for name in (after[-1], before[-1])]
            assert newest[0] == newest[1]
            own_before = [name for name in before if "FIXED" not in name]
            assert own_before[-1:] == [name for name in after if "FIXED" not in name][-1:]
        if index["best"] in own:
            assert (run.checkpoints / index["best"]).is_dir()
        assert all((run.path / name).is_file() for name in RECORDS)
        there = {path.name for path in run.checkpoints.glob("step_*")}
        now = read_json(run.checkpoints / "index.json") or {}
        assert set(now["healthy"]) <= there
        assert now["last"] in {None, *there}


@pytest.mark.parametrize("parts", list(itertools.combinations(PRUNABLE, 2)))
def test_nothing_is_removed_that_is_not_named(tmp_path: Path, parts: tuple[Prunable, ...]) -> None:
    root = tmp_path / "runs"
    run = ended_run(root)
    for name in ("step_00000001", "step_00000002", "step_00000001_FIXED"):
        checkpoint(run, name)
    (run.path / ".status.json.77.aside").write_text("{}")
    (run.path / "notes.txt").write_text("mine")
    before = sizes_of(run)
    pruned(root, *parts)
    after = sizes_of(run)
    assert {part for part in PARTS if after[part] < before[part]} <= {*parts, "records"}
    assert (after["samples"], after["logs"], after["unlisted"]) == (100, 100, 4)


def test_a_run_that_has_not_ended_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = ended_run(root, state="running")
    for step in (1, 2):
        checkpoint(run, f"step_{step:08d}")
    plan = plan_pruning(root, sizes_under(root), list(PRUNABLE))
    assert plan.removals == []
    assert plan.kept[0][1].endswith("nothing is removed in a run that has not ended")


def test_a_run_that_begins_again_between_plan_and_deed_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = ended_run(root, state="failed")
    for step in (1, 2):
        checkpoint(run, f"step_{step:08d}")
    plan = plan_pruning(root, sizes_under(root), ["checkpoints", "capsules"])
    assert len(plan.removals) == 2
    begin_attempt(run, {"node": "n1"})
    assert [problem for _, problem in prune(root, plan)] == ["began again meanwhile"] * 2
    assert len(usable(run)) == 2


def test_where_none_passes_verification_all_stay(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = ended_run(root)
    for step in (1, 2):
        checkpoint(run, f"step_{step:08d}", damaged=True)
    plan = plan_pruning(root, sizes_under(root), ["checkpoints"])
    assert plan.removals == []
    assert "none passes verification: all stay" in plan.kept[0][1]


def test_what_was_renamed_aside_and_not_replaced_is_the_checkpoint(tmp_path: Path) -> None:
    """A writer that was killed between its two renames: the next start brings the old one back."""
    root = tmp_path / "runs"
    run = ended_run(root)
    checkpoint(run, "step_00000001")
    (run.checkpoints / "step_00000001").rename(run.checkpoints / ".step_00000001.old")
    (run.checkpoints / ".step_00000002.aside").mkdir()
    assert pruned(root, "asides") == [run.checkpoints / ".step_00000002.aside"]
    assert (run.checkpoints / ".step_00000001.old").is_dir()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = ended_run(root)
    precious = tmp_path / "precious"
    shutil.copytree(run.capsules / "step_00000003", precious)
    (run.capsules / "step_00000009").symlink_to(precious, target_is_directory=True)
    pruned(root, "capsules")
    assert not list(run.capsules.iterdir())
    assert (precious / "file").is_file()


def test_submissions_stay_where_they_are_all_that_tells(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    on_slurm(root, "FAILED", has_attempt=False)
    folder = next((root / ".submissions").glob("*.json")).with_suffix("")
    if folder.name == "scheduler":
        folder = root / ".submissions" / "swae3d_20261122_120000"
    folder.mkdir()
    assert pruned(root, "submissions") == []
    shutil.rmtree(root)
    on_slurm(root, "TIMEOUT")
    folder.mkdir()
    (folder / "812_0_log.err").write_text("x")
    assert pruned(root, "submissions") == [folder]
    assert folder.with_suffix(".json").is_file(), "the ledger is no submission"


def test_only_a_closed_set_can_be_named() -> None:
    assert parse_parts(["capsules"]) == ["capsules"]
    for name in ("records", "metrics", "*", "../x"):
        with pytest.raises(ConfigError, match="what can be removed is checkpoints"):
            parse_parts([name])


def test_sizes_add_up_to_the_folder(tmp_path: Path) -> None:
    run = ended_run(tmp_path / "runs")
    checkpoint(run, "step_00000001")
    (run.path / "notes.txt").write_text("mine")
    assert sum(sizes_of(run).values()) == bytes_below(run.path)
    assert json.loads(json.dumps(sizes_under(tmp_path / "runs")[0].as_json()))["num_bytes"]["unlisted"] == 4
