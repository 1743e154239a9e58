"""Jobs with the real trainer: what the other tests of this room leave to a stand-in."""

from __future__ import annotations

from pathlib import Path

from hpcstab.campaign import parse_overrides, plan
from hpcstab.launch.cancel import cancel
from hpcstab.launch.queue import run_states
from hpcstab.launch.submit import submit
from hpcstab.metrics import read_history
from hpcstab.rundir import RunDir, read_attempts, read_json
from tests.launch.conftest import local, wait_for_end, wait_until


def test_one_run_completes_and_one_is_cancelled_between_two_steps(root: Path) -> None:
    endless = parse_overrides(["trainer.max_steps=1000000"])
    planned = plan(["swae3d"], ["before"], [0], "tiny") + plan(["swae3d"], ["cured"], [0], "tiny", endless)
    ledger = submit(planned, "swae3d", local(max_parallel=2), root)
    wait_until(lambda: (run_states(root, ledger.campaign)[1].step or 0) > 0, "a step of the endless run", 120.0)
    cancel(ledger.jobs[1].run_id, root)
    completed, cancelled = wait_for_end(root, ledger.campaign)
    assert (completed.state, completed.step, completed.total_steps) == ("completed", 6, 6)
    assert (completed.metric, completed.unit) == ("psnr", "dB")
    assert completed.value is not None
    assert (cancelled.state, cancelled.source, cancelled.detail) == ("cancelled", "attempts/001.json", "SIGTERM")
    run = RunDir(root / cancelled.run_id)
    (attempt,) = read_attempts(run)
    status = read_json(run.status_json)
    assert status is not None
    assert attempt["steps_gained"] == status["step"] == len(read_history(run.metrics_csv))
    assert attempt["threads"] == 1
