"""The verbs submit, status, logs, cancel and clusters as a user meets them: output, exit codes, one-line errors."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcstab.cli import main
from hpcstab.cli.status import follow_campaign, hours, short_name, table_of
from hpcstab.launch.ledger import updating
from hpcstab.launch.queue import run_states
from hpcstab.rundir import find_runs
from hpcstab.state.ledger import ledger_path
from tests.launch import conftest as launch
from tests.launch.conftest import states, wait_for_end, wait_until

fake_training = launch.fake_training
root = launch.root
SetPlan = Callable[[str], None]
COMMAND = [sys.executable, "-m", "hpcstab"]


class Command:
    """Runs the command in this process, below a folder of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["hpcstab", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fake_training: SetPlan
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


def submitted(command: Command, *arguments: str) -> str:
    """The campaign id of a detached submission."""
    code, out, err = command("submit", "swae3d", "--scale", "tiny", "--detach", "--json", *arguments)
    assert (code, err) == (0, "")
    return str(json.loads(out)["campaign"])


def test_submit_waits_and_ends_with_the_report(command: Command, fake_training: SetPlan, root: Path) -> None:
    fake_training("1=diverge")
    code, out, _ = command("submit", "swae3d", "--scale", "tiny", "--seeds", "0-1", "--variants", "before,after")
    assert code == 0, "a diverged run is a result"
    lines = out.splitlines()
    campaign = lines[0].split()[1].rstrip(":")
    assert "before s0  queued" in lines
    assert any(re.fullmatch(r"after s0  completed 6/6  loss 0\.5", line) for line in lines)
    assert any(re.fullmatch(r"before s1  diverged 3/6  loss nan.*", line) for line in lines)
    assert lines[-1] == f"report: reports/local/{campaign}/report.html"
    assert Path(f"reports/local/{campaign}/report.html").is_file()
    assert states(root, campaign) == ["completed", "completed", "diverged", "diverged"]


def test_a_failed_run_is_bad_news_and_named(command: Command, fake_training: SetPlan) -> None:
    fake_training("1=fail,2=crash")
    code, out, err = command("submit", "swae3d", "--scale", "tiny", "--seeds", "0-2", "--variants", "before", "--json")
    assert code == 1
    answer = json.loads(out)
    assert [run["state"] for run in answer["runs"]] == ["completed", "failed", "lost"]
    assert "before s1  failed 2/6  loss 0.5  ValueError: the data are bad; `hpcstab logs swae3d/before/" in err


def test_live_table_on_a_terminal(command: Command, tmp_path: Path) -> None:
    arguments = ["submit", "swae3d", "--scale", "tiny", "--seeds", "0", "--variants", "before"]
    shown: list[bytes] = []

    def read(descriptor: int) -> bytes:
        shown.append(os.read(descriptor, 65536))
        return shown[-1]

    with Path(os.devnull).open("w") as nowhere:
        before = os.dup(1)
        os.dup2(nowhere.fileno(), 1)  # pty.spawn copies what it reads
        try:
            code = pty.spawn([*COMMAND, *arguments], read)
        finally:
            os.dup2(before, 1)
            os.close(before)
    text = b"".join(shown).decode()
    assert os.waitstatus_to_exitcode(code) == 0
    assert "1 run: 1 completed" in text
    assert "Traceback" not in text


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the tests may have been started in the background, deaf to it


def test_ctrl_c_while_waiting_cancels(fake_training: SetPlan, command: Command, root: Path) -> None:
    fake_training("0=wait,1=wait,2=wait")
    arguments = ["submit", "swae3d", "--scale", "tiny", "--seeds", "0-2", "--variants", "before"]
    waiting = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=_hear_ctrl_c,
    )
    wait_until(lambda: (root / ".submissions").exists() and list((root / ".submissions").glob("*.json")), "the ledger")
    (path,) = (root / ".submissions").glob("*.json")
    wait_until(lambda: "running" in states(root, path.stem), "a running run")
    os.killpg(waiting.pid, signal.SIGINT)  # as a terminal does: to all processes in the foreground
    _, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 130
    assert f"interrupted: cancelling the runs of {path.stem}" in err
    assert "Traceback" not in err
    assert states(root, path.stem) == ["cancelled"] * 3


def test_detached_then_status_logs_cancel(command: Command, fake_training: SetPlan, root: Path) -> None:
    fake_training("0=wait,1=complete")
    campaign = submitted(command, "--seeds", "0-1", "--variants", "before")
    wait_until(lambda: states(root, campaign) == ["running", "completed"], "one running, one completed")
    code, out, _ = command("status")
    assert code == 0
    header, *rows, summary = [line.split("\t") for line in out.splitlines()]
    assert header[:4] == ["run", "state", "step", "loss"]
    assert sorted((row[0].split("_s")[1][0], row[1]) for row in rows) == [("0", "running"), ("1", "completed")]
    assert summary == ["2 runs: 1 running, 1 completed"]
    found = json.loads(command("status", campaign, "--json")[1])
    assert [(run["state"], run["campaign"], run["source"]) for run in found] == [
        ("running", campaign, "status.json"),
        ("completed", campaign, "status.json"),
    ]
    assert command("logs", "_s1_", "-n", "2")[:2] == (0, "trained by the fake\nattempt 1 ended: completed, 6 steps\n")
    code, out, _ = command("cancel", "_s0_")
    assert (code, "asked to stop" in out) == (0, True)
    code, out, _ = command("logs", "_s0_", "--follow")
    assert (code, out.splitlines()[-1]) == (0, "attempt 1 ended: SIGTERM, 1 steps")
    assert "cancelled" in command("status")[1]
    assert "nothing to cancel: cancelled" in command("cancel", campaign)[1]


def test_a_metric_that_is_nan_is_no_change_for_ever(command: Command, fake_training: SetPlan, root: Path) -> None:
    fake_training("0=wait")
    campaign = submitted(command, "--seeds", "0", "--variants", "before")
    wait_until(lambda: run_states(root, campaign)[0].value is not None, "an evaluation")
    lines = io.StringIO()
    follow_campaign(root, campaign, lines, patience_s=1.2)
    assert re.fullmatch(r"before s0  running 1/6  loss 0\.5  psnr nan.*\n", lines.getvalue())
    command("cancel", campaign)
    wait_for_end(root, campaign)


def test_a_campaign_file(command: Command) -> None:
    code, out, _ = command("submit", "--campaign", "swae3d_three_seeds", "--dry-run", "--json")
    assert code == 0
    runs = json.loads(out)["runs"]
    assert [(run["variant"], run["seed"]) for run in runs[:4]] == [
        ("before", 0),
        ("after", 0),
        ("cured", 0),
        ("before", 1),
    ]
    assert {run["scale"] for run in runs} == {"quick"}


def test_a_dry_run_shows_everything_and_creates_nothing(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("submit", "swae3d", "--scale", "tiny", "--set", "optimizer.lr=1e-3", "--dry-run")
    assert code == 0
    assert "before{optimizer.lr=0.001}\t0\ttiny" in out
    assert "9 runs on cluster 'local'" in out
    assert "-m hpcstab.launch.start" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("slurm_is", ["not installed", "not configured", "not answering"])
def test_a_dry_run_for_a_cluster_whose_slurm_does_not_answer(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_is: str
) -> None:
    why = {
        "not installed": ("", "there is no sbatch here"),
        "not configured": ("echo 'error: no configuration file' >&2; exit 1", "there is no Slurm here"),
        "not answering": ("echo 'Slurmctld(primary) at x is DOWN'; exit 1", "controller does not answer"),
    }
    script, reason = why[slurm_is]
    stand_in(tmp_path / "bin", monkeypatch, {"sbatch": "exit 1", "scontrol": script} if script else {})
    code, out, err = command("submit", "swae3d", "--cluster", "delta", "--dry-run", "--seeds", "0")
    assert code == 0
    assert "#SBATCH --partition=gpuA100x4\n" in out
    assert "#SBATCH --array=0-2%3\n" in out
    assert err.startswith("hpcstab: this machine cannot submit to 'delta': ")
    assert reason in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"]
    plan = json.loads(command("submit", "swae3d", "--cluster", "delta", "--dry-run", "--json")[1])
    assert (plan["usable"], reason in plan["why"], "#SBATCH --mem=58G" in plan["script"]) == (False, True, True)
    for wrong in (["--cluster", "dleta"], ["--cluster", "delta", "--seeds", "x"]):
        assert command("submit", "swae3d", *wrong, "--dry-run")[:2] == (2, "")


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, commands: dict[str, str]) -> None:
    """Programs on PATH, and of Slurm's no others."""
    folder.mkdir()
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_gpu_hours_are_shown_where_there_were_gpus(command: Command, root: Path) -> None:
    campaign = submitted(command, "--seeds", "0-1", "--variants", "before")
    wait_for_end(root, campaign)
    plain = command("status")[1].splitlines()
    assert plain[-1] == "2 runs: 2 completed"
    column = plain[0].split("\t").index("GPU h")
    assert [line.split("\t")[column] for line in plain[1:-1]] == ["", ""]
    first, second = find_runs(root)
    for run, num_gpus, taken_h in ((first, 2, 1.5), (second, 1, 0.001)):
        attempt = json.loads(run.attempt_json(1).read_text())
        end = attempt["start"] + 3600 * taken_h
        run.attempt_json(1).write_text(json.dumps({**attempt, "devices": ["0", "1"][:num_gpus], "end": end}))
    shown = command("status")[1].splitlines()
    assert [line.split("\t")[column] for line in shown[1:-1]] == ["3.00", "<0.01"]
    assert shown[-1] == "2 runs: 2 completed; 3.00 GPU-hours"
    assert [round(run["gpu_hours"], 4) for run in json.loads(command("status", "--json")[1])] == [3.0, 0.001]


def test_the_table_has_the_columns_that_tell_something(command: Command, root: Path) -> None:
    submitted(command, "--seeds", "0", "--variants", "before")
    (state,) = wait_for_end(root, next((root / ".submissions").glob("*.json")).stem)
    for nothing_to_tell in (None, 0.004):
        table = table_of([replace(state, gpu_hours=nothing_to_tell)], short_name)
        assert "GPU h" not in [column.header for column in table.columns]
    with_gpu = replace(state, gpu_hours=0.25, attempt=2)
    assert {"GPU h", "attempt"} <= {column.header for column in table_of([with_gpu], short_name).columns}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (0.004, "<0.01"), (0.25, "0.25"), (12.34, "12.3"), (340.4, "340")]
)
def test_hours(count: float, text: str) -> None:
    assert hours(count) == text


def test_no_runs_is_an_answer(command: Command) -> None:
    assert command("status") == (0, "no runs under 'runs'; `hpcstab submit MODEL` makes some\n", "")
    assert command("status", "--json")[:2] == (0, "[]\n")


def test_clusters(command: Command) -> None:
    code, out, _ = command("clusters")
    assert code == 0
    assert re.search(r"^delta\tslurm\tfull\t0-2\t.*\tno\t", out, re.MULTILINE)
    assert re.search(r"^local\tlocal\tquick\t0-2\t.*\tyes\t", out, re.MULTILINE)
    code, out, _ = command("clusters", "check", "delta")
    assert code == 1
    assert "slurm.partition\tgpuA100x4" in out
    assert re.search("not usable here: there is no (Slurm|sbatch) here", out)
    code, out, _ = command("clusters", "check", "local", "--json")
    assert (code, json.loads(out)["usable"]) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "MODEL or --campaign"),
        (["submit", "swae3d", "--campaign", "swae3d_three_seeds"], "MODEL or --campaign"),
        (["submit", "--campaign", "swae3d_three_seeds", "--seeds", "1"], "states variants, seeds and settings itself"),
        (["submit", "--campaign", "../x"], "unknown campaign"),
        (["submit", "swae4d"], "unknown model 'swae4d', did you mean 'swae3d'?"),
        (["submit", "swae3d\ntouch F"], "unknown model"),
        (["submit", "swae3d", "--variants", "befor"], "did you mean 'before'?"),
        (["submit", "swae3d", "--variants", "before; rm -rf ~"], "is not an expression"),
        (["submit", "swae3d", "--variants", ""], "is empty"),
        (["submit", "swae3d", "--variants", "before,before"], "asked for twice"),
        (["submit", "swae3d", "--seeds", "-1"], "neither a number >= 0"),
        (["submit", "swae3d", "--seeds", ""], "neither a number >= 0"),
        (["submit", "swae3d", "--scale", "huge"], "unknown scale 'huge'"),
        (["submit", "swae3d", "--set", "optimizer.lr=1\n#SBATCH"], "control character"),
        (["submit", "swae3d", "--set", "optimizer.lr=$(id)"], "valid number"),
        (["submit", "swae3d", "--cluster", "dleta"], "did you mean 'delta'?"),
        (["submit", "swae3d", "--cluster", "local\n"], "unknown cluster"),
        (["submit", "swae3d", "--root", "file/runs"], "cannot be written: Not a directory"),
        (["submit", "swae3d", "--root", "/proc/runs"], "cannot be written"),
        (["submit", "swae3d", "--root", "a\nb"], "a control character or % is not allowed"),
        (["submit", "swae3d", "--configs", "nowhere"], "holds neither configs/ nor jobs/"),
        (["status", "--watch", "1", "--json"], "exclude each other"),
        (["logs", "nothing"], "no run matches"),
        (["cancel", "nothing"], "no run matches"),
        (["cancel", "swae3d_20260101_000000"], "no run matches"),
        (["clusters", "check", "nowhere"], "There are: delta"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = command(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", ["{", '{"jobs": 3}', ""])
def test_a_damaged_ledger(command: Command, root: Path, content: str) -> None:
    campaign = submitted(command, "--seeds", "0", "--variants", "before")
    wait_for_end(root, campaign)
    ledger_path(root, campaign).write_text(content)
    for arguments in (["cancel", campaign], ["status", campaign]):
        code, out, err = command(*arguments)
        assert (code, out, err.count("\n")) == (3, "", 1)
    code, out, err = command("status")
    assert "completed" in out, "the run itself can be read"
    assert (code, err.count("\n")) == (3, 1)
    assert f"{campaign}.json" in err


def test_a_damaged_status(command: Command, root: Path) -> None:
    campaign = submitted(command, "--seeds", "0-1", "--variants", "before")
    wait_for_end(root, campaign)
    find_runs(root)[0].status_json.write_text("{")
    code, out, err = command("status")
    assert (code, err.count("\n")) == (3, 1)
    assert "status.json" in err
    assert out.splitlines()[-1] == "2 runs: 2 completed", "the other is read, and the attempt says it of this one"


def test_a_ledger_of_another_machine_is_not_guessed_at(command: Command, root: Path, fake_training: SetPlan) -> None:
    fake_training("0=complete")
    campaign = submitted(command, "--seeds", "0", "--variants", "before")
    wait_for_end(root, campaign)
    run = find_runs(root)[0]
    run.status_json.unlink()
    run.attempt_json(1).unlink()
    with updating(ledger_path(root, campaign)) as ledger:
        assert ledger.jobs[0].process is not None
        ledger.jobs[0].process = ledger.jobs[0].process.model_copy(update={"host": "elsewhere"})
    (state,) = json.loads(command("status", "--json")[1])
    assert state["state"] == "unknown"


def test_a_slurm_cluster_without_its_slurm(command: Command, tmp_path: Path) -> None:
    code, _, err = command("submit", "swae3d", "--cluster", "delta")
    assert code == 3
    assert re.match("hpcstab: there is no (Slurm|sbatch) here", err)
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
