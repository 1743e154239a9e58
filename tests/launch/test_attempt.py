"""One attempt in this process: what it prints, how it ends, what stays of it."""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpcstab.errors import RunError
from hpcstab.launch.attempt import run_attempt
from hpcstab.launch.output import teed_to
from hpcstab.launch.signals import StoppedError, StopSignals
from hpcstab.rundir import RunDir, read_attempts
from hpcstab.state.process import Process
from tests.conftest import MakeRun
from tests.launch.conftest import FAKE_TRAINING

if TYPE_CHECKING:
    from hpcstab.execute import Execution

SetPlan = Callable[[str], None]


@pytest.fixture
def train_like(monkeypatch: pytest.MonkeyPatch) -> SetPlan:
    """The fake trainer in this process."""
    monkeypatch.setitem(sys.modules, "hpcstab.execute", None)  # gives the real one back after the test
    runpy.run_path(str(FAKE_TRAINING / "sitecustomize.py"))
    return lambda plan: monkeypatch.setenv("HPCSTAB_TEST_TRAINING", plan)


@contextlib.contextmanager
def descriptors_1_and_2() -> Iterator[None]:
    """Python prints to descriptors 1 and 2, as outside of pytest, which still catches what arrives there."""
    with (
        open(1, "w", closefd=False) as out,
        open(2, "w", closefd=False) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        yield


def attempt(run: RunDir, facts: dict[str, str] | None = None, **kwargs: Any) -> Execution:
    with descriptors_1_and_2():
        return run_attempt(run, facts, **kwargs)


def only_attempt(run: RunDir) -> dict[str, Any]:
    (record,) = read_attempts(run)
    return record


def test_a_completed_attempt(make_run: MakeRun, train_like: SetPlan) -> None:
    run = make_run()
    execution = attempt(run, {"job_id": "7"})
    assert (execution.state, execution.steps_gained) == ("completed", 6)
    record = only_attempt(run)
    assert (record["reason"], record["steps_gained"], record["job_id"]) == ("completed", 6, "7")
    assert Process.model_validate(record["process"]) == Process.current()
    assert record["start"] < record["end"]
    log = run.log(1).read_text().splitlines()
    assert log[0].startswith(f"attempt 1 of {run.run_id}")
    assert log[1:] == ["trained by the fake", "attempt 1 ended: completed, 6 steps"]
    attempt(run)
    assert [record["attempt"] for record in read_attempts(run)] == [1, 2]
    assert run.log(2).exists()


@pytest.mark.parametrize(
    ("training", "error", "in_log"),
    [("refuse", RunError, ""), ("bug", TypeError, "TypeError: nobody expected this")],
)
def test_what_is_raised_ends_the_attempt(
    make_run: MakeRun, train_like: SetPlan, training: str, error: type[Exception], in_log: str
) -> None:
    run = make_run()
    train_like(f"0={training}")
    with pytest.raises(error):
        attempt(run)
    assert (only_attempt(run)["reason"], only_attempt(run)["end"] is None) == ("failed", False)
    assert in_log in run.log(1).read_text()


def test_a_run_that_was_removed_is_not_made_again(make_run: MakeRun, train_like: SetPlan) -> None:
    run = make_run()
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="no run folder"):
        attempt(run)
    assert not run.path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_stops_it_at_the_next_step(make_run: MakeRun, train_like: SetPlan, number: signal.Signals) -> None:
    run = make_run()
    train_like("0=wait")
    before = signal.getsignal(number)
    with StopSignals() as signals:
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        assert attempt(run, stop_requested=signals.requested).state == "stopped"
    assert only_attempt(run)["reason"] == number.name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once(make_run: MakeRun, train_like: SetPlan) -> None:
    run = make_run()
    train_like("0=hang")
    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
        for delay_s in (0.2, 0.5):
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        attempt(run, stop_requested=signals.requested)
    assert only_attempt(run)["reason"] == "SIGINT"


def test_the_time_limit_is_a_reason_and_the_first_reason_stays() -> None:
    with StopSignals() as signals:
        assert signals.requested() is None
        signals.set_time_limit(-1.0)
        assert signals.requested() == "time_limit"
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.requested() == "time_limit"


def test_a_signal_ends_what_only_waits() -> None:
    with StopSignals() as signals:
        with pytest.raises(StoppedError, match="SIGTERM"), signals.interrupting():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedError, match="SIGTERM"), signals.interrupting():
            pytest.fail("the signal came before: there is nothing to wait for")


def test_signals_wait_until_somebody_listens_and_are_ignored_afterwards() -> None:
    """With handlers between, as submitit sets them, that must never be called."""
    code = """
        import os, signal
        from hpcstab.launch.signals import StopSignals, hold_back
        numbers = (signal.SIGTERM, signal.SIGUSR2)
        hold_back()
        for number in numbers:
            os.kill(os.getpid(), number)
            signal.signal(number, lambda number, frame: os._exit(7))
        with StopSignals(ignored_afterwards=True) as signals:
            print(signals.requested())
        for number in numbers:
            os.kill(os.getpid(), number)
        print("lives")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.split()) == (0, ["SIGUSR2", "lives"])


def test_all_output_reaches_log_and_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "it's a log; $(id).log"
    with descriptors_1_and_2(), teed_to(log):
        print("python")
        os.write(2, b"descriptor\n")
        subprocess.run(["echo", "child"], check=True)
        print("unfinished", end="")
    assert log.read_text().splitlines() == ["python", "descriptor", "child", "unfinished"]
    assert capfd.readouterr().out.splitlines() == ["python", "descriptor", "child", "unfinished"]


def test_the_last_words_of_a_killed_process_are_in_its_log(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hpcstab.launch.output import teed_to\n"
        f"with teed_to(Path({str(tmp_path / 'log')!r})):\n"
        "    print('last words')\n"
        "    os.killpg(0, 15)\n"  # as scancel does: to every process of the job
        "    os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN)\n" + code],
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "last words\n", "standard output ends when tee has drained it"
    assert (tmp_path / "log").read_text() == "last words\n"
