"""Folders as they are found: whole, torn, broken, still written to. None is lost, none raises."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hpcstab.report.load import load_runs
from hpcstab.rundir import RunDir
from tests.golden.make import GOLDEN
from tests.report.synthetic import STEPS, make_run


def test_golden_run_loads_without_a_problem() -> None:
    (run,), broken = load_runs([RunDir(GOLDEN)])
    assert not broken and not run.problems
    assert (run.state, run.steps, run.first_nonfinite_step) == ("completed", 6, None)
    assert list(run.evals["step"]) == [0, 3, 6]


def test_torn_last_lines_are_cut(tmp_path: Path) -> None:
    made = make_run(tmp_path, "after")
    for file in (made.metrics_csv, made.evals_csv, made.events_jsonl, made.probes_csv):
        with file.open("a") as stream:
            stream.write("40,4")
    (run,), _ = load_runs([made])
    assert not run.problems and run.steps == STEPS


def test_nonfinite_values_are_read_as_such(tmp_path: Path) -> None:
    (run,), _ = load_runs([make_run(tmp_path, fails_at=8)])
    assert run.first_nonfinite_step == run.first_failure_step == 8
    assert run.diverged and math.isnan(run.history["loss"].iloc[-1]) and math.isinf(run.history["grad_norm"].iloc[-1])


def test_a_killed_trainer_without_status_is_still_known_to_have_diverged(tmp_path: Path) -> None:
    made = make_run(tmp_path, fails_at=8)
    made.status_json.unlink()
    made.events_jsonl.unlink()
    (run,), _ = load_runs([made])
    assert run.first_failure_step == 8 and run.diverged and run.answer("finite") == "no"


def test_last_row_of_a_step_counts(tmp_path: Path) -> None:
    made = make_run(tmp_path, "after", steps=20, state="running")
    lines = made.metrics_csv.read_text().splitlines(keepends=True)
    again = lines[6].split(",")  # step 5, written once more after a resume
    again[7] = "123.0"
    made.metrics_csv.write_text("".join([*lines, ",".join(again)]))
    (run,), _ = load_runs([made])
    assert run.history["loss"][5] == 123.0 and run.steps == 20


@pytest.mark.parametrize(
    ("state", "steps", "expected"),
    [("running", 20, "running"), ("lost", 20, "lost"), ("failed", 0, "failed"), ("queued", 0, "queued")],
)
def test_state_of_runs_that_have_not_ended_by_themselves(tmp_path: Path, state: str, steps: int, expected: str) -> None:
    (run,), _ = load_runs([make_run(tmp_path, "after", state=state, steps=steps)])
    assert run.state == expected and run.unfinished and not run.diverged


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("metrics.csv", "step,loss\n1,2,3\n4\n", "metrics.csv"),
        ("metrics.csv", "step\n1\n", "has no column"),
        ("evals.csv", "\x00\x00\n\x00\n", "evals.csv"),
        ("status.json", "[1]", "status.json"),
        ("status.json", '{"state": "completed", "judgement": {"finite": 3}}', "judgement"),
        ("task.json", '{"metrics": [{}]}', "task.json"),
        ("config.yaml", "a: [", "config.yaml"),
        ("events.jsonl", "{}\n", "events.jsonl"),
    ],
)
def test_a_garbage_file_is_a_problem_of_a_run_that_still_counts(
    tmp_path: Path, file: str, content: str, problem: str
) -> None:
    made = make_run(tmp_path, fails_at=8)
    (made.path / file).write_text(content)
    (run,), broken = load_runs([made])
    assert not broken and run.label == "before"
    assert problem in " ".join(run.problems)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"run_id": 1}', None])
def test_without_an_identity_the_folder_is_named_with_the_reason(tmp_path: Path, content: str | None) -> None:
    made = make_run(tmp_path)
    if content is None:
        made.run_json.unlink()
    else:
        made.run_json.write_text(content)
    loaded, (folder,) = load_runs([made])
    assert not loaded and folder.path == made.path and folder.reason
