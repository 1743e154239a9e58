"""Put on PYTHONPATH, this stands in for ``hpcstab.execute`` in every process that a test starts.

Job bodies, attempts, slots and signals are then the real ones, without the seconds that torch takes to load. What the
trainer does, HPCSTAB_TEST_TRAINING says by seed: ``0=complete,1=crash``.
"""

import os
import signal
import sys
import time
import types
from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    state: str
    steps_gained: int
    reason: str


def execute(run, attempt, stop_requested):
    seed = run.identity()["seed"]
    plan = dict(pair.split("=") for pair in os.environ.get("HPCSTAB_TEST_TRAINING", "").split(",") if pair)
    return BEHAVIOURS[plan.get(str(seed), "complete")](run, attempt, stop_requested)


def write_status(run, attempt, state, step, **more):
    from hpcstab.rundir import write_json

    last = {"loss": 0.5, "grad_norm": 1.0, "lr": 0.1, "step_time_s": 0.1}
    position = {"state": state, "step": step, "total_steps": 6, "update": step, "time": time.time()}
    write_json(run.status_json, {**position, "attempt": attempt, "last": last, **more})


def complete(run, attempt, stop_requested):
    print("trained by the fake")
    write_status(run, attempt, "running", 1)
    time.sleep(0.1)
    write_status(run, attempt, "completed", 6)
    return Execution("completed", 6, "6 steps")


def diverge(run, attempt, stop_requested):
    write_status(run, attempt, "diverged", 3, first_nonfinite_step=2, last={"loss": "nan", "grad_norm": "inf"})
    return Execution("diverged", 3, "non-finite")


def fail(run, attempt, stop_requested):
    print("ValueError: the data are bad", file=sys.stderr)
    write_status(run, attempt, "failed", 2, error="ValueError: the data are bad\nand more")
    return Execution("failed", 2, "ValueError")


def refuse(run, attempt, stop_requested):
    from hpcstab.errors import RunError

    raise RunError("metrics.csv: cannot be written: No space left on device")


def bug(run, attempt, stop_requested):
    raise TypeError("nobody expected this")


def crash(run, attempt, stop_requested):
    write_status(run, attempt, "running", 1)
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def a_while():
    """Turns of a loop that outlives any test, and not the day: a test that was killed cannot cancel it."""
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline:
        yield


def wait(run, attempt, stop_requested):
    for _ in a_while():
        if stop_requested() is not None:
            break
        write_status(run, attempt, "running", 1, best=None, eval={"psnr": "nan"})
        time.sleep(0.05)
    return Execution("stopped", 1, stop_requested())


def hang(run, attempt, stop_requested):
    write_status(run, attempt, "running", 1)
    for _ in a_while():
        time.sleep(0.1)


def environment(run, attempt, stop_requested):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
    print(*(f"{name}={os.environ.get(name)}" for name in names), sep="\n")
    print(f"torch loaded: {'torch' in sys.modules}")
    return complete(run, attempt, stop_requested)


BEHAVIOURS = {f.__name__: f for f in (complete, diverge, fail, refuse, bug, crash, wait, hang, environment)}

_module = types.ModuleType("hpcstab.execute")
_module.execute = execute
_module.Execution = Execution
sys.modules["hpcstab.execute"] = _module
