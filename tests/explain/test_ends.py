"""Ends that the trainer could not tell itself: from Slurm's answers, the ledger, the attempts and the process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hpcstab.explain.causes import CAUSES, Cause, ranked
from hpcstab.explain.commands import _NEXT
from hpcstab.explain.look import Asking, facts_of
from hpcstab.explain.numerics import NUMERIC_RULES, USE_RULES
from hpcstab.explain.run_story import story_of_run
from hpcstab.explain.story import Story
from hpcstab.explain.text import story_text
from hpcstab.launch.ledger import write_ledger
from hpcstab.metrics import EventLog
from hpcstab.rundir import RunDir, write_json
from hpcstab.state.answers import Answers, JobAnswer, Scheduled, write_answers
from hpcstab.state.ledger import Job, Ledger, Resources, Slurm, ledger_path, submission_folder
from tests.report.synthetic import edit_identity, make_run

CAMPAIGN = "swae3d_20261122_120000"
FILES_ALONE = Asking(replays=False, scans=False)


def told(run: RunDir) -> Story:
    return story_of_run(facts_of(run, FILES_ALONE))


def on_slurm(root: Path, state: str, *, cancelled: bool = False, has_attempt: bool = True, **said: Any) -> RunDir:
    """A run whose trainer was cut off, as a job about which Slurm said ``state`` a moment ago."""
    run = make_run(root, state="lost" if has_attempt else "queued", steps=20)
    for ledger in (root / ".submissions").glob("*.json"):
        ledger.unlink()
    now = time.time()
    job = Job(index=0, run_id=run.run_id, job_id="812", cancelled_at=now if cancelled else None)
    resources = Resources(parallel_runs=1, threads_per_run=1, gpus_per_run=1, devices=None, time_limit_s=3600.0)
    slurm = Slurm(cluster_name="lab", uid=0, partition="p", account=None, gres=None, constraint=None, cpus_per_task=1,
                  mem_gib=4, signal_lead_s=60)  # fmt: skip
    ledger = Ledger(campaign=CAMPAIGN, cluster="lab", executor="slurm", created=now - 9000, request=[], owner=None,
                    resources=resources, slurm=slurm, jobs=[job])  # fmt: skip
    write_ledger(ledger_path(root, CAMPAIGN), ledger)
    answer = JobAnswer("812", CAMPAIGN, state, said.pop("reason", None), None, "gpua012", "sacct", **said)
    write_answers(root, Answers(now, None, {"812": Scheduled(answer, now)}))
    if has_attempt:
        begun = {"attempt": 1, "start": now - 8000, "end": None, "reason": None}
        write_json(run.attempt_json(1), {**begun, "job_id": "812", "node": "gpua012", "devices": ["0"]})
        status = {"state": "running", "attempt": 1, "time": now - 100, "step": 20, "total_steps": 40}
        write_json(run.status_json, status)
    return run


@pytest.mark.parametrize(
    ("state", "more", "cause", "confidence", "exit_code"),
    [
        ("OUT_OF_MEMORY", {"exit_code": "0:125"}, "out_of_memory", "certain", 1),
        ("FAILED", {"exit_code": "0:9"}, "out_of_memory", "likely", 1),
        ("NODE_FAIL", {}, "node_failure", "certain", 1),
        ("PREEMPTED", {}, "preempted", "certain", 1),
        ("TIMEOUT", {}, "time_limit", "certain", 1),
        ("CANCELLED", {"cancelled": True}, "cancelled_by_user", "certain", 0),
        ("CANCELLED", {}, "cancelled_by_user", "certain", 0),
        ("PENDING", {"reason": "Priority"}, "waiting", "certain", 0),
        ("FAILED", {"has_attempt": False}, "never_started", "certain", 1),
    ],
)
def test_what_slurm_says(
    tmp_path: Path, state: str, more: dict[str, Any], cause: str, confidence: str, exit_code: int
) -> None:
    story = told(on_slurm(tmp_path / "runs", state, **more))
    first = story.causes[0]
    assert (first.name, first.confidence, story.exit_code) == (cause, confidence, exit_code)
    assert first.evidence[0].source in ("sacct", "ledger")
    assert story.commands


def test_the_word_of_slurm_has_its_age(tmp_path: Path) -> None:
    story = told(on_slurm(tmp_path / "runs", "NODE_FAIL"))
    assert "sacct: job 812 NODE_FAIL, asked 0 s ago" in story_text(story)
    assert story.causes[1].name == "lost"


def test_submitits_log_is_read_where_there_is_no_attempt(tmp_path: Path) -> None:
    run = on_slurm(tmp_path / "runs", "FAILED", has_attempt=False)
    folder = submission_folder(ledger_path(tmp_path / "runs", CAMPAIGN))
    folder.mkdir()
    (folder / "812_0_log.err").write_text("/usr/bin/python3: No module named hpcstab\nsrun: error: gpua012: task 0\n")
    names = [cause.name for cause in told(run).causes]
    assert names[:2] == ["never_started", "missing_module_or_environment"]


def test_what_the_job_printed_last_goes_before_silence(tmp_path: Path) -> None:
    run = on_slurm(tmp_path / "runs", "FAILED", exit_code="1:0")
    run.log(1).write_text("step 19 loss 0.5\nslurmstepd: error: Detected 1 oom_kill event in StepId=812.0.\n")
    story = told(run)
    assert (story.causes[0].name, story.causes[0].confidence) == ("out_of_memory", "certain")
    assert story.causes[0].evidence[0].source == "logs/001.log:2"


@pytest.mark.parametrize(
    ("options", "cause", "exit_code"),
    [
        ({"state": "completed", "gain": 1.2}, "completed_healthy", 0),
        ({"state": "completed", "gain": -0.5}, "not_learning", 1),
        ({"state": "completed", "gain": 1.2, "masked": 3}, "masked", 1),
        ({"state": "running", "steps": 20}, "still_running_healthy", 0),
        ({"state": "lost", "steps": 20}, "lost", 1),
        ({"state": "queued"}, "waiting", 0),
        ({"state": "failed", "steps": 20}, "refused", 1),
        ({"fails_at": 12}, "nonfinite_operation", 1),
    ],
)
def test_states_of_this_machine(tmp_path: Path, options: dict[str, Any], cause: str, exit_code: int) -> None:
    story = told(make_run(tmp_path / "runs", **options))
    assert (story.causes[0].name, story.exit_code) == (cause, exit_code)


def test_a_running_run_that_is_not_finite_is_to_be_cancelled(tmp_path: Path) -> None:
    story = told(make_run(tmp_path / "runs", state="running", fails_at=12, steps=30))
    assert story.causes[0].name == "nonfinite_operation"
    assert story.commands[0].line.startswith("hpcstab cancel ")


def test_a_lost_run_says_what_it_probably_was_and_how_to_be_sure(tmp_path: Path) -> None:
    story = told(make_run(tmp_path / "runs", state="lost", steps=20))
    first, second = story.causes
    assert (first.name, second.name, second.confidence) == ("lost", "out_of_memory", "guess")
    assert "sacct" in first.about.confirm
    assert "to make sure: " in story_text(story)


def test_the_surest_goes_first_and_then_the_order_of_the_list() -> None:
    given = [
        Cause("time_limit", "certain", "b"),
        Cause("lost", "likely", "d"),
        Cause("nonfinite_operation", "certain", "a"),
        Cause("out_of_memory", "likely", "c"),
        Cause("time_limit", "guess", "again"),
    ]
    assert [cause.reason for cause in ranked(given)] == ["a", "b", "c", "d"]


def test_every_cause_has_a_meaning_a_way_to_be_sure_and_a_command() -> None:
    of_checkpoints = {"checkpoint_unusable", "checkpoint_healthy"}
    assert set(_NEXT) == set(CAUSES) - of_checkpoints
    assert all(about.meaning and about.confirm for about in CAUSES.values())
    assert {rule.cause for rule in (*NUMERIC_RULES, *USE_RULES)} <= set(CAUSES)


def test_saves_that_failed_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", state="lost", steps=20)
    events = EventLog(run.events_jsonl, attempt=1)
    events.write("checkpoint_failed", 10, 10, reason="No space left on device")
    events.close()
    story = told(run)
    assert story.causes[0].name == "disk_full_or_quota"
    assert story.causes[0].evidence[0].source == "events.jsonl:2"


def test_a_rerun_names_its_parent(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", state="running", steps=20)
    parent = {"run_id": "swae3d/before/parent", "step": 8, "repaired": True, "weights_only": False}
    edit_identity(run, parent=parent)
    assert "rerun from step 8, repaired, parent swae3d/before/parent" in story_text(told(run))
