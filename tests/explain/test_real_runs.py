"""Real trainings at scale tiny, each with another end, and what why says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hpcstab.execute import replay
from hpcstab.explain.look import Asking, facts_of, look
from hpcstab.explain.run_story import story_of_run
from hpcstab.explain.story import Story
from hpcstab.explain.target import find_target
from hpcstab.explain.text import story_text
from hpcstab.rundir import RunDir, begin_attempt
from tests.conftest import MakeRun
from tests.launch.test_attempt import attempt

FILES_ALONE = Asking(replays=False, scans=False)
FAULT = "data.faults=[{step: 5, kind: inf_pixel}]"


def told(run: RunDir, asking: Asking = FILES_ALONE) -> Story:
    return look(find_target(str(run.path), run.path.parents[2]), asking)


def with_code(run: RunDir, tmp_path: Path, *body: str) -> RunDir:
    """The run, with a task of a user's own that does ``body`` in step 2."""
    lines = [
        "from hpcstab.models.swae3d.task import Task as Base",
        "class Task(Base):",
        "    def loss_terms(self, network, batch, context):",
        "        if context.step == 2:",
        *(f"            {line}" for line in body),
        "        return super().loss_terms(network, batch, context)",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines) + "\n")
    values = yaml.safe_load(run.config_yaml.read_text())
    run.config_yaml.write_text(yaml.safe_dump({**values, "model": f"{tmp_path}/mine.py:Task"}))
    return run


def test_a_diverged_run_names_the_operation_and_the_cure(diverged: RunDir) -> None:
    """With the replay of its capsule, in a process of its own, and the doctor's word on its checkpoints."""
    story = told(diverged, Asking(limit_s=300))
    first = story.causes[0]
    assert (first.name, first.confidence, story.exit_code) == ("nonfinite_operation", "certain", 1)
    assert first.reason.startswith("rsqrt in encoder.features.5 made the first non-finite value of step 1, domain")
    text = story_text(story)
    for words in (
        "diverged at step 3 of 30",
        "models/swae3d/network.py:",
        "radicand.rsqrt()",
        "loss term  mse, sliced_wasserstein",
        "(6 of 32",
        "gate open, guards none",
        "step_00000003  SICK",
        "events.jsonl:",
        "as recorded, to the",
        "hpcstab train swae3d@before+gdn_bounded --scale tiny --seed 0 --set optimizer.lr=0.1",
    ):
        assert words in text
    assert len(text.splitlines()) <= 45, "one screen"
    assert max(len(line) for line in text.splitlines() if not line.lstrip().startswith("next")) <= 120
    assert story.as_json()["checkpoints"][0]["scanned"]


def test_without_a_replay_it_is_not_certain(diverged: RunDir) -> None:
    story = told(diverged)
    first = story.causes[0]
    assert (first.name, first.confidence) == ("nonfinite_operation", "likely")
    assert "hpcstab replay" in first.about.confirm
    assert any(command.line.startswith("hpcstab replay ") for command in story.commands)


def test_a_cured_run_has_nothing_wrong_with_its_numbers(train_run: MakeRun) -> None:
    story = told(train_run(variant="cured"))
    assert [cause.name for cause in story.causes] == ["not_learning"], "six steps teach nothing, and that is all"
    assert "no checkpoint" not in story_text(story)


def test_poisoned_statistics(train_run: MakeRun) -> None:
    """One bad batch, left out by the loop, whose statistics stayed: the weights are fine, and no evaluation works."""
    run = train_run(variant="after", settings=["trainer.max_steps=12", "stability.gate=step_only", FAULT])
    story = told(run)
    assert (story.causes[0].name, story.causes[0].confidence) == ("batchnorm_poisoned", "certain")
    assert "running_mean" in story.causes[0].reason
    sick, healthy = story.as_json()["checkpoints"][-1], story.as_json()["checkpoints"][0]
    assert (healthy["is_healthy"], sick["is_healthy"]) == (True, False)
    assert "running_mean" in sick["sick"]
    assert [command.line.split()[1] for command in story.commands] == ["doctor", "rerun"]
    assert story.commands[1].line.endswith("--from last --with hardened")
    (run.checkpoints / "step_00000006").rename(
        run.checkpoints / "step_00000006_FIXED"
    )  # as if the doctor had been there
    (run.checkpoints / "step_00000006_FIXED" / "manifest.json").write_bytes(
        (run.checkpoints / "step_00000004" / "manifest.json").read_bytes()
    )
    (run.checkpoints / "step_00000006_FIXED" / "state.pt").write_bytes(
        (run.checkpoints / "step_00000004" / "state.pt").read_bytes()
    )
    assert [command.line.split(" --from ")[1] for command in told(run).commands] == ["healthy --with hardened"]


def test_the_same_batch_under_a_gate_costs_nothing(train_run: MakeRun) -> None:
    run = train_run(variant="after+hardened", settings=["trainer.max_steps=12", FAULT])
    assert [cause.name for cause in told(run).causes] == ["not_learning"]


def test_bad_data_are_named_by_sample(train_run: MakeRun) -> None:
    run = train_run(variant="after", settings=["trainer.max_steps=12", FAULT])
    capsule = replay(next(run.capsules.glob("step_*"))).as_json()
    story = story_of_run(replace(facts_of(run, FILES_ALONE), replay=capsule, no_replay=""))
    assert (story.causes[0].name, story.causes[0].confidence) == ("bad_data", "certain")
    assert "a fault that data.faults declares" in story.causes[0].reason
    assert "(1 of 16 samples)" in story_text(story)


def test_a_crash_in_a_users_task(make_run: MakeRun, tmp_path: Path) -> None:
    run = with_code(make_run(), tmp_path, "raise ZeroDivisionError('a bug of mine')")
    attempt(run)
    story = told(run)
    first = story.causes[0]
    assert (first.name, first.confidence) == ("crash_in_code", "certain")
    assert f"ZeroDivisionError: a bug of mine at {tmp_path}/mine.py:5 in loss_terms" in first.reason
    assert [command.line.split()[1] for command in story.commands] == ["logs", "train"]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise OSError(28, 'No space left on device')", "disk_full_or_quota"),
        ("import a_package_that_is_not_here", "missing_module_or_environment"),
        ("raise FileNotFoundError('volumes/v7.npy')", "data_error"),
        ("raise MemoryError", "out_of_memory"),
    ],
)
def test_what_a_crash_was_about(make_run: MakeRun, tmp_path: Path, body: str, cause: str) -> None:
    run = with_code(make_run(), tmp_path, body)
    attempt(run)
    story = told(run)
    assert (story.causes[0].name, story.causes[0].confidence) == (cause, "certain")


def test_a_write_that_fails_has_no_traceback_and_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    """As the trainer reports a full disk: one line in status.json."""
    run = make_run()
    begin_attempt(run, {"node": "n1"})
    error = f"{run.metrics_csv}: cannot be written: No space left on device; free space or choose another --root"
    run.status_json.write_text(json.dumps({"state": "failed", "error": error, "attempt": 1, "step": 3, "time": 1.0}))
    story = told(run)
    assert (story.causes[0].name, story.exit_code) == ("disk_full_or_quota", 1)
    assert story.commands[0].line.startswith("hpcstab runs")


def test_every_small_file_may_be_garbage(diverged: RunDir) -> None:
    """One bad file hides no other, and nothing becomes an internal error."""
    run = diverged
    for path in (run.run_json, run.config_yaml, run.task_json, run.events_jsonl, run.metrics_csv, run.evals_csv,
                 run.status_json, run.attempt_json(1), run.checkpoints / "index.json"):  # fmt: skip
        content = path.read_bytes()
        for garbage in (b"\x00\xff{]", b"", content[: len(content) // 2], b"[1]\n"):
            path.write_bytes(garbage)
            assert story_text(story_of_run(facts_of(run, FILES_ALONE, checkpoints=())))
        path.write_bytes(content)


def test_the_command_and_its_exit_code(diverged: RunDir) -> None:
    command = [sys.executable, "-m", "hpcstab", "why", str(diverged.path), "--no-replay", "--no-scan", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["causes"][0]["cause"] == "nonfinite_operation"
