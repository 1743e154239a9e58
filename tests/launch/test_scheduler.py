"""Slurm's answers: what is made of them, and how often they are asked for; commands of our own stand on PATH."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcstab.errors import LaunchError
from hpcstab.launch import scheduler
from hpcstab.launch.answers import scheduler_answers
from hpcstab.launch.clusters import choose_cluster
from hpcstab.launch.ledger import write_ledger
from hpcstab.launch.queue import run_state
from hpcstab.launch.scheduler import expand_job_ids, parse_duration_s
from hpcstab.rundir import RunDir, begin_attempt, end_attempt, write_json
from hpcstab.state.answers import Answers, JobAnswer, Scheduled, read_answers
from hpcstab.state.ledger import (
    Job,
    Ledger,
    Resources,
    Slurm,
    ledger_path,
    read_ledger,
    read_ledgers,
    submission_folder,
)
from hpcstab.state.process import Process

CAMPAIGN = "swae3d_20260101_000000"
Command = Callable[[str, str], None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command("squeue", "echo ...")``: a program on PATH, and of Slurm's no other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/bash\nPATH=/usr/bin:/bin\necho x >> {tmp_path}/{name}.calls\n{script}\n")
        path.chmod(0o755)

    return make


def calls(tmp_path: Path, name: str) -> int:
    path = tmp_path / f"{name}.calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def slurm_ledger(root: Path, run_ids: list[str], job_ids: list[str | None]) -> Ledger:
    slurm = Slurm(
        partition="gpu", account=None, gres=None, constraint=None, cpus_per_task=1, mem_gib=1, signal_lead_s=60
    )
    resources = Resources(parallel_runs=2, threads_per_run=1, gpus_per_run=1, devices=None, time_limit_s=3600.0)
    jobs = [Job(index=i, run_id=run, job_id=job) for i, (run, job) in enumerate(zip(run_ids, job_ids, strict=True))]
    ledger = Ledger(
        campaign=CAMPAIGN,
        cluster="lab",
        executor="slurm",
        created=time.time(),
        request=[],
        resources=resources,
        slurm=slurm,
        owner=None,
        jobs=jobs,
    )
    path = ledger_path(root, CAMPAIGN)
    submission_folder(path).mkdir(parents=True)
    write_ledger(path, ledger)
    return ledger


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3:04", 184), ("2:03:04", 7384), ("1-02:03:04", 93784), ("0:00", 0), ("2-00:00:00", 172800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["UNLIMITED", "NOT_SET", "INVALID", "", "N/A", "x:1"])
def test_what_is_no_duration(text: str) -> None:
    assert parse_duration_s(text) is None


def test_rows_of_many_tasks() -> None:
    assert expand_job_ids("12_[1-3,7%2]") == ["12_1", "12_2", "12_3", "12_7"]
    assert expand_job_ids("12_3") == ["12_3"]
    assert expand_job_ids("12") == ["12"]
    assert expand_job_ids("12_[1-3,...]") == ["12_1", "12_2", "12_3"]


def test_squeue_first_then_the_last_row_of_sacct(command: Command) -> None:
    command("squeue", "echo '5_0|RUNNING|None|2026-01-01T00:00:00|1:00|n1|a|b'")
    command("sacct", "printf '5_1|PREEMPTED|a|n1|0:0|x\\n5_1|CANCELLED by 0|a|n2|0:15|x\\n5_0|FAILED|a|n1|1:0|x\\n'")
    answers = scheduler.job_answers(["5_0", "5_1", "5_2"])
    assert (answers["5_0"].state, answers["5_0"].source, answers["5_0"].name) == ("RUNNING", "squeue", "a|b")
    assert (answers["5_1"].state, answers["5_1"].node, answers["5_1"].source) == ("CANCELLED", "n2", "sacct")
    assert "5_2" not in answers, "absence is no answer"


def test_without_accounting(command: Command) -> None:
    command("squeue", "true")
    command("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert scheduler.job_answers(["5_0"]) == {}


def test_the_environment_is_ours(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    command("squeue", 'echo "$SQUEUE_FORMAT$SLURM_JOB_ID$SLURM_TIME_FORMAT,$LC_ALL,$SLURM_CONF"')
    assert scheduler.job_state("1") == "standard,C,/dev/null"


def test_no_slurm_and_one_that_does_not_answer(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match="there is no squeue here") as caught:
        scheduler.job_answers([])
    assert caught.value.exit_code == 3
    command("squeue", "exec sleep 60")
    monkeypatch.setattr(scheduler, "_LIMIT_S", 0.3)
    monkeypatch.setattr(scheduler._run, "__kwdefaults__", {"limit_s": 0.3})
    with pytest.raises(LaunchError, match="controller does not answer"):
        scheduler.job_answers([])
    command("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(LaunchError, match="controller does not answer") as caught:
        scheduler.job_answers([])
    assert caught.value.exit_code == 3


def test_the_slurm_here_is_the_default(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_cluster(None).name == "local", "no sbatch"
    command("sbatch", "exit 1")
    command(
        "scontrol", 'if [ "$1" = ping ]; then echo "Slurmctld(primary) at x is UP"; else echo "ClusterName = delta"; fi'
    )
    assert choose_cluster(None).name == "delta"
    assert choose_cluster("local").name == "local"
    command(
        "scontrol", 'if [ "$1" = ping ]; then echo "Slurmctld(primary) at x is UP"; else echo "ClusterName = odd"; fi'
    )
    with pytest.raises(
        Exception, match=r"Slurm cluster 'odd', and there is no jobs/clusters/odd.yaml. There are: delta"
    ):
        choose_cluster(None)
    command("scontrol", 'echo "Slurmctld(primary) at x is DOWN"; exit 1')
    assert choose_cluster(None).name == "local"


def test_one_question_for_all_readers_and_the_last_answer_stays(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    ledger = slurm_ledger(root, ["m/v/a", "m/v/b"], ["5_0", "5_1"])
    command("squeue", f"printf '5_0|RUNNING|None|x|1:00|n1|{CAMPAIGN}\\n5_1|PENDING|Priority|N/A|1:00||other\\n'")
    command("sacct", "exit 1")
    for _ in range(3):
        answers = scheduler_answers(root)
    assert calls(tmp_path, "squeue") == 1
    first = answers.of(ledger, ledger.jobs[0])
    assert first is not None
    assert first.answer.node == "n1"
    assert answers.of(ledger, ledger.jobs[1]) is None, "another one's job with the same id"
    assert read_ledgers(root)[1] == [], "the answers are no ledger that cannot be read"
    command("squeue", "exit 1")
    again = scheduler_answers(root, min_age_s=0)
    assert again.problem is not None
    assert again.of(ledger, ledger.jobs[0]) == first


def test_tasks_cancelled_before_they_had_a_row(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    ledger = slurm_ledger(root, ["m/v/a", "m/v/b"], ["5_0", "5_1"])
    command("sacct", "exit 1")
    command("squeue", f"printf '5_0|RUNNING|None|x|1:00|n1|{CAMPAIGN}\\n5_1|PENDING|Priority|x|1:00||{CAMPAIGN}\\n'")
    scheduler_answers(root)
    command("squeue", f"printf '5_0|RUNNING|None|x|1:00|n1|{CAMPAIGN}\\n5|CANCELLED|None|x|1:00||{CAMPAIGN}\\n'")
    answers = scheduler_answers(root, min_age_s=0)
    said = [answers.of(ledger, job) for job in ledger.jobs]
    assert [one.answer.state if one else None for one in said] == ["RUNNING", "CANCELLED"]


def test_ids_that_nobody_wrote_down_are_found_by_name(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    slurm_ledger(root, ["m/v/a", "m/v/b"], [None, None])
    command("squeue", f"printf '5_1|PENDING|Priority|N/A|1:00||{CAMPAIGN}\\n5_0|RUNNING|None|x|1:00|n1|{CAMPAIGN}\\n'")
    scheduler_answers(root)
    assert [job.job_id for job in read_ledger(ledger_path(root, CAMPAIGN)).jobs] == ["5_0", "5_1"]


@pytest.mark.parametrize(
    ("slurm_says", "reason", "attempt_ended", "trainer", "cancelled", "expected"),
    [
        ("PENDING", "Priority", None, None, False, ("queued", "waits behind jobs of higher priority")),
        ("PENDING", "BeginTime", "SIGTERM", "running", False, ("queued", "restarts at 12:31, attempt 1: SIGTERM")),
        ("RUNNING", None, None, None, False, ("running", "starts")),
        ("RUNNING", None, "SIGUSR2", "running", False, ("running", "attempt 1: SIGUSR2, waits for Slurm")),
        ("SUSPENDED", None, "", "running", False, ("running", "Slurm says SUSPENDED")),
        ("RUNNING", None, "", "running", True, ("running", "cancel requested")),
        ("COMPLETED", None, "completed", "completed", False, ("completed", None)),
        ("CANCELLED", None, "SIGTERM", "running", True, ("cancelled", "attempt 1: SIGTERM")),
        ("CANCELLED", None, None, None, False, ("cancelled", "not by hpcstab")),
        ("COMPLETED", None, None, None, True, ("cancelled", "")),
        ("TIMEOUT", None, "SIGUSR2", "running", False, ("timeout", "attempt 1: SIGUSR2")),
        ("PREEMPTED", None, "SIGTERM", "running", False, ("preempted", "attempt 1: SIGTERM")),
        ("NODE_FAIL", None, "", "running", False, ("lost", "Slurm says NODE_FAIL on n1, the trainer nothing")),
        ("FAILED", None, None, None, False, ("failed", "its job ended before its first attempt and printed nothing")),
        (None, None, "", "running", False, ("running", None)),
        (
            None,
            None,
            "SIGTERM",
            "running",
            False,
            ("unknown", "attempt 1: SIGTERM; Slurm has said nothing about its job"),
        ),
        (None, None, None, None, False, ("queued", "submitted")),
    ],
)
def test_states(
    tmp_path: Path,
    slurm_says: str | None,
    reason: str | None,
    attempt_ended: str | None,
    trainer: str | None,
    cancelled: bool,
    expected: tuple[str, str | None],
) -> None:
    """``attempt_ended``: None without an attempt, empty while it runs."""
    root = tmp_path / "runs"
    run_id = "swae3d/before/20260101_000000_s0_00000000"
    run = RunDir(root / run_id)
    run.path.mkdir(parents=True)
    ledger = slurm_ledger(root, [run_id], ["5_0"])
    if attempt_ended is not None:
        number = begin_attempt(run, {"node": "n1", "job_id": "5_0"})
        if attempt_ended:
            end_attempt(run, number, attempt_ended, 3)
    if trainer is not None:
        write_json(run.status_json, {"state": trainer, "step": 3, "time": time.time() - 1, "attempt": 1})
    if cancelled:
        ledger.jobs[0].cancelled_at = time.time()
    answer = JobAnswer("5_0", CAMPAIGN, slurm_says or "", reason, "2026-01-01T12:31:05", "n1", "squeue")
    said = {"5_0": Scheduled(answer, time.time())} if slurm_says else {}
    state = run_state(run, ledger, ledger.jobs[0], Answers(time.time(), None, said))
    assert (state.state, state.detail or None) == (expected[0], expected[1] or None)


@pytest.mark.parametrize(
    ("slurm_says", "asked_s_ago", "silent_s", "attempt_ended", "expected"),
    [
        ("RUNNING", 0, 1, False, ("running", "completed, writes its last files")),
        ("COMPLETING", 0, 1, False, ("running", "completed, writes its last files")),
        (None, 0, 1, False, ("running", "completed, writes its last files")),
        ("PENDING", 20, 1, False, ("running", "completed, writes its last files")),
        ("RUNNING", 0, 1, True, ("completed", None)),
        ("COMPLETED", 0, 1, False, ("completed", None)),
        ("NODE_FAIL", 0, 1, False, ("completed", None)),
        ("PENDING", 0, 1, False, ("completed", None)),
        ("RUNNING", 0, 90, False, ("completed", None)),
    ],
)
def test_a_run_is_over_once_its_attempt_is_on_record(
    tmp_path: Path,
    slurm_says: str | None,
    asked_s_ago: float,
    silent_s: float,
    attempt_ended: bool,
    expected: tuple[str, str | None],
) -> None:
    """Or, where its process was killed between the two records, once Slurm or a long silence says so."""
    run = RunDir(tmp_path / "swae3d/before/20260101_000000_s0_00000000")
    run.path.mkdir(parents=True)
    ledger = slurm_ledger(tmp_path, [run.run_id], ["5_0"])
    now = time.time()
    begin_attempt(run, {"node": "n1", "job_id": "5_0", "start": now - 10 - silent_s})
    write_json(run.status_json, {"state": "completed", "step": 3, "time": now - silent_s, "attempt": 1})
    if attempt_ended:
        end_attempt(run, 1, "completed", 3)
    answer = JobAnswer("5_0", CAMPAIGN, slurm_says or "", None, None, "n1", "squeue")
    said = {"5_0": Scheduled(answer, now - asked_s_ago)} if slurm_says else {}
    state = run_state(run, ledger, ledger.jobs[0], Answers(now, None, said))
    assert (state.state, state.detail) == expected


OUR_QUEUE = {"cluster": "lab", "uid": 7}


@pytest.mark.parametrize(
    ("whose", "problem", "age_s", "expected"),
    [
        (OUR_QUEUE, None, 0, True),
        ({"cluster": "delta", "uid": 7}, None, 0, False),
        ({"cluster": "lab", "uid": 8}, None, 0, False),
        ({}, None, 0, False),
        (OUR_QUEUE, "Slurm's controller does not answer", 0, False),
        (OUR_QUEUE, None, 10_000, False),
    ],
)
def test_absence_counts_only_in_the_right_queue(
    tmp_path: Path, whose: dict[str, Any], problem: str | None, age_s: float, expected: bool
) -> None:
    ledger = settled(slurm_ledger(tmp_path, ["m/v/a"], ["5"]))
    now = time.time()
    assert Answers(now - age_s, problem, {}, **whose).lacks(ledger, ledger.jobs[0]) is expected
    before = {"5": Scheduled(JobAnswer("5", CAMPAIGN, "RUNNING", None, None, "n1", "squeue"), now - age_s)}
    assert not Answers(now - age_s, problem, before, **whose).lacks(ledger, ledger.jobs[0]), "it was named just now"


def settled(ledger: Ledger, age_s: float = 3600.0) -> Ledger:
    """As if it had been submitted so long ago, to the queue of ``OUR_QUEUE``."""
    assert ledger.slurm is not None
    slurm = ledger.slurm.model_copy(update={"cluster_name": "lab", "uid": 7})
    return ledger.model_copy(update={"slurm": slurm, "created": time.time() - age_s})


@pytest.mark.parametrize(
    ("job_id", "attempt_ended", "silent_s", "age_s", "expected"),
    [
        ("5_0", None, 0, 3600, ("lost", "Slurm no longer knows job 5_0; its node probably does not see ")),
        ("5_0", "", 900, 3600, ("lost", "Slurm no longer knows job 5_0; last sign of life 900 s ago")),
        ("5_0", "SIGTERM", 900, 3600, ("stopped", "SIGTERM")),
        ("5_0", "time_limit", 900, 3600, ("timeout", "")),
        (None, None, 0, 3600, ("lost", "was never queued: its submission was interrupted; submit it again")),
        (
            None,
            None,
            0,
            60,
            ("unknown", "its submission was interrupted; that Slurm has no job of it is certain from "),
        ),
    ],
)
def test_a_job_that_is_in_no_queue(
    tmp_path: Path,
    job_id: str | None,
    attempt_ended: str | None,
    silent_s: float,
    age_s: float,
    expected: tuple[str, str],
) -> None:
    run = RunDir(tmp_path / "swae3d/before/20260101_000000_s0_00000000")
    run.path.mkdir(parents=True)
    ledger = settled(slurm_ledger(tmp_path, [run.run_id], [job_id]), age_s)
    if attempt_ended is not None:
        begin_attempt(run, {"node": "n1", "job_id": "5_0", "start": time.time() - 1800})
        if attempt_ended:
            end_attempt(run, 1, attempt_ended, 3)
        write_json(run.status_json, {"state": "running", "step": 3, "time": time.time() - silent_s, "attempt": 1})
    state = run_state(run, ledger, ledger.jobs[0], Answers(time.time(), None, {}, **OUR_QUEUE))
    assert (state.state, str(state.detail or "")[: len(expected[1])]) == expected
    ledger.jobs[0].cancelled_at = time.time()
    asked = run_state(run, ledger, ledger.jobs[0], Answers(time.time(), None, {}, **OUR_QUEUE))
    assert asked.state == ("timeout" if attempt_ended == "time_limit" else "cancelled")


def test_a_submission_that_is_under_way(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "swae3d/before/20260101_000000_s0_00000000")
    run.path.mkdir(parents=True)
    ledger = settled(slurm_ledger(tmp_path, [run.run_id], [None]))
    ledger = ledger.model_copy(update={"owner": Process.current()})
    write_ledger(ledger_path(tmp_path, CAMPAIGN), ledger)
    state = run_state(run, ledger, ledger.jobs[0], Answers(time.time(), None, {}, **OUR_QUEUE))
    assert (state.state, state.detail) == ("queued", "is being submitted")


def test_who_was_asked_is_known_where_a_job_is_missing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_ledger(tmp_path, ["m/v/a"], ["5"])
    command("sacct", "exit 1")
    command("scontrol", "echo 'ClusterName = lab'")
    command("squeue", f"echo '5|RUNNING|None|x|1:00|n1|{CAMPAIGN}'")
    assert (scheduler_answers(tmp_path).cluster, calls(tmp_path, "scontrol")) == (None, 0)
    command("squeue", "true")
    assert scheduler_answers(tmp_path, min_age_s=0).cluster == "lab"
    assert read_answers(tmp_path).uid == os.getuid()


def test_jobs_that_left_the_queue_nameless_are_found_in_accounting(command: Command, tmp_path: Path) -> None:
    slurm_ledger(tmp_path, ["m/v/a"], [None])
    command("scontrol", "echo 'ClusterName = lab'")
    command("squeue", "true")
    command("sacct", f'echo "$*" > {tmp_path}/asked; echo "9|COMPLETED|x|n1|0:0|{CAMPAIGN}"')
    answers = scheduler_answers(tmp_path)
    assert f"--name={CAMPAIGN} -S 20" in (tmp_path / "asked").read_text()
    ledger = read_ledger(ledger_path(tmp_path, CAMPAIGN))
    assert ledger.jobs[0].job_id == "9"
    assert not answers.lacks(ledger, ledger.jobs[0])


SEES_NO_ROOT = "node n1 does not see '{root}', or may not write there: put --root on a file system that the nodes share"


@pytest.mark.parametrize(
    ("reason", "exit_code", "printed", "expected"),
    [
        ("JobLaunchFailure", None, None, SEES_NO_ROOT),
        ("RaisedSignal:53(Real-time_signal_19)", None, None, SEES_NO_ROOT),
        (None, "0:53", None, SEES_NO_ROOT),
        ("NonZeroExitCode", "1:0", None, "its job ended before its first attempt and printed nothing"),
        ("JobLaunchFailure", None, "", "its job ended before its first attempt and printed nothing"),
        (
            "NonZeroExitCode",
            None,
            "slurmstepd-n1: error: execve(): /a/bin/python: No such file or directory\nsrun: error: n1: x\n",
            "node n1 does not see /a/bin/python: install hpcstab on a file system that the nodes share",
        ),
        (
            "NonZeroExitCode",
            None,
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'hpcstab'\nsrun: error: x\n",
            "node n1: No module named 'hpcstab': install hpcstab on a file system that the nodes share",
        ),
        (
            "NonZeroExitCode",
            None,
            "hpcstab: /r/run.json: is not a JSON mapping\nlater noise\nsrun: error: x\n",
            "its job ended before its first attempt: /r/run.json: is not a JSON mapping",
        ),
        (
            None,
            "127:0",
            "line 30: srun: command not found\n\n",
            "its job ended before its first attempt: line 30: srun: command not found",
        ),
    ],
)
def test_why_a_job_ended_before_its_first_attempt(
    tmp_path: Path, reason: str | None, exit_code: str | None, printed: str | None, expected: str
) -> None:
    run = RunDir(tmp_path / "swae3d/before/20260101_000000_s0_00000000")
    run.path.mkdir(parents=True)
    ledger = slurm_ledger(tmp_path, [run.run_id], ["5_0"])
    if printed is not None:
        (submission_folder(ledger_path(tmp_path, CAMPAIGN)) / "5_0_0_log.out").write_text(printed)
    answer = JobAnswer("5_0", CAMPAIGN, "FAILED", reason, None, "n1", "sacct", exit_code)
    said = Answers(time.time(), None, {"5_0": Scheduled(answer, time.time())})
    state = run_state(run, ledger, ledger.jobs[0], said)
    assert (state.state, state.detail) == ("failed", expected.format(root=tmp_path))


@pytest.mark.parametrize("older", ["PENDING", "PREEMPTED"])
def test_an_attempt_that_began_since_slurm_was_asked(tmp_path: Path, older: str) -> None:
    root = tmp_path / "runs"
    run = RunDir(root / "swae3d/before/20260101_000000_s0_00000000")
    run.path.mkdir(parents=True)
    ledger = slurm_ledger(root, [run.run_id], ["5_0"])
    begin_attempt(run, {"node": "n1", "job_id": "5_0"})
    said = Scheduled(JobAnswer("5_0", CAMPAIGN, older, "Priority", None, None, "squeue"), time.time() - 5)
    state = run_state(run, ledger, ledger.jobs[0], Answers(time.time(), None, {"5_0": said}))
    assert (state.state, state.detail) == ("running", "starts")
