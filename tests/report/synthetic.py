"""Run folders without a training: seeded curves, written with the real writers under the real contracts."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hpcstab.config import Experiment, load_experiment, parse_overrides, resolve
from hpcstab.identity import create_run
from hpcstab.judgement import judge
from hpcstab.launch.ledger import write_ledger
from hpcstab.metrics import PROBES_COLUMNS, CsvAppender, EventLog, evals_header, metrics_header
from hpcstab.rundir import RunDir, begin_attempt, end_attempt, write_json
from hpcstab.state.ledger import Job, Ledger, Resources, ledger_path
from hpcstab.state.process import Process

CAMPAIGN = "swae3d_20261122_120000"
STEPS = 40
FLOOR, REFERENCE = 14.0, 16.0
TERMS = ("mse", "sliced_wasserstein")
METRICS = ("psnr", "ratio")
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def make_run(  # noqa: PLR0913 - a run has that many sides
    root: Path,
    variant: str = "before",
    seed: int = 0,
    *,
    fails_at: int | None = None,
    gain: float = 1.0,
    masked: int = 0,
    state: str | None = None,
    steps: int = STEPS,
    settings: tuple[str, ...] = (),
    campaign: str | None = CAMPAIGN,
    scale: str = "quick",
) -> RunDir:
    """One run. ``gain``: final PSNR above the floor; ``fails_at``: first non-finite step, then ten more.

    ``state``: completed or diverged unless given; ``running``, ``failed`` and ``lost`` keep ``steps`` rows of
    a longer plan, ``queued`` has none.
    """
    run = create(root, variant, seed, settings, campaign, scale)
    if state == "queued":
        write_queued(root, run)
        return run
    process = Process.current()
    if state == "lost":
        process = process.model_copy(update={"pid_start": process.pid_start - 1})  # somebody else has its pid now
    attempt = begin_attempt(run, {"node": "node", "process": process.model_dump()})
    write_json(run.task_json, task_json())
    if steps:
        write_rows(run, seed, steps, fails_at, masked)
        write_evals(run, steps, fails_at, gain)
        write_probes(run, steps if fails_at is None else min(fails_at, steps))
    state = state or ("completed" if fails_at is None else "diverged")
    write_status(run, state, steps, fails_at)
    if state == "completed":
        run.samples.mkdir()
        (run.samples / f"step_{steps:08d}_volume.png").write_bytes(PNG)
    if state not in ("running", "lost"):
        end_attempt(run, attempt, state, steps)
    return run


def create(root: Path, variant: str, seed: int, settings: tuple[str, ...], campaign: str | None, scale: str) -> RunDir:
    """The folder as ``submit`` makes it, with a horizon and a length of ``STEPS``."""
    experiment = _swae3d()
    resolved = resolve(experiment, variant, scale, parse_overrides(list(settings)))
    run = create_run(root, experiment, resolved, seed, campaign)
    config = yaml.safe_load(run.config_yaml.read_text())
    config["trainer"]["max_steps"] = STEPS
    run.config_yaml.write_text(yaml.safe_dump(config, sort_keys=False))
    edit_identity(run, compare={**run.identity()["compare"], "horizon_steps": STEPS})
    return run


@functools.cache
def _swae3d() -> Experiment:
    return load_experiment("swae3d")


def edit_identity(run: RunDir, **changes: Any) -> None:
    """Change entries of run.json."""
    write_json(run.run_json, {**run.identity(), **changes})


def task_json() -> Mapping[str, Any]:
    return {
        "metrics": [
            {"name": "psnr", "unit": "dB", "direction": "higher", "about": "of whole volumes"},
            {"name": "ratio", "unit": "1", "direction": "higher", "about": "bytes over bytes"},
        ],
        "loss_terms": list(TERMS),
        "diagnostics": [],
        "baselines": {
            "validation": [
                {"name": "mean_predictor", "role": "floor", "scores": {"psnr": FLOOR}},
                {"name": "block_pca_16", "role": "reference", "scores": {"psnr": REFERENCE}},
            ]
        },
        "data": {"source": "synthetic", "num_train_items": 2000},
    }


def write_rows(run: RunDir, seed: int, steps: int, fails_at: int | None, masked: int) -> None:
    """Decaying losses with seeded noise; from ``fails_at`` on NaN, for ten steps."""
    rng = np.random.default_rng(seed)
    file = CsvAppender(run.metrics_csv, metrics_header(TERMS, ()))
    for step in range(steps if fails_at is None else min(steps, fails_at + 10)):
        dead = fails_at is not None and step >= fails_at
        loss = math.nan if dead else float(10 * math.exp(-3 * step / STEPS) * rng.uniform(0.9, 1.1))
        norm = math.inf if dead else float(rng.uniform(1, 5))
        file.append(
            {
                "step": step, "update": step, "epoch": 0, "attempt": 1, "time_s": 0.1 * step, "step_time_s": 0.1,
                "peak_mem_gib": 0.5, "loss": loss, "loss_finite": not dead, "grad_norm": norm,
                "grad_finite": not dead, "clip_scale": 1.0, "lr": 1e-3, "num_masked": masked, "num_limited": 0,
                "outcome": "applied", "loss_mse": loss / 10, "loss_sliced_wasserstein": loss * 9 / 100,
            }
        )  # fmt: skip
    file.close()


def write_evals(run: RunDir, steps: int, fails_at: int | None, gain: float) -> None:
    """PSNR from 1 dB below the floor to ``gain`` above it, every quarter, while the run lives."""
    file = CsvAppender(run.evals_csv, evals_header(METRICS))
    for step in range(0, steps + 1, STEPS // 4):
        if fails_at is not None and step > fails_at:
            break
        psnr = FLOOR - 1 + (gain + 1) * step / STEPS
        file.append(
            {
                "step": step, "update": step, "attempt": 1, "split": "validation", "weights": "raw",
                "num_batches": 2, "num_failed_batches": 0, "seconds": 0.01, "psnr": psnr, "ratio": 32.0,
            }
        )  # fmt: skip
    file.close()


def write_probes(run: RunDir, steps: int) -> None:
    file = CsvAppender(run.probes_csv, PROBES_COLUMNS)
    for step in range(0, steps, 10):
        row = {"step": step, "update": step, "attempt": 1, "module": "encoder", "grad_norm": 1.0, "update_norm": 0.1}
        file.append(row)
    file.close()


def write_status(run: RunDir, state: str, steps: int, fails_at: int | None) -> None:
    events = EventLog(run.events_jsonl, attempt=1)
    events.write("train_start", 0, 0, device="cpu", device_name="test", num_threads=1)
    if fails_at is not None:
        events.write("first_nonfinite", fails_at, fails_at, loss=math.nan)
        events.write("diverged", fails_at + 9, fails_at + 9, reason="loss non-finite in 10 steps in a row")
    events.close()
    ended = state in ("completed", "diverged")
    write_json(
        run.status_json,
        {
            "state": "running" if state == "lost" else state,
            "step": steps,
            "total_steps": STEPS,
            "update": steps,
            "time": time.time() - (10_000 if state == "lost" else 0),
            "attempt": 1,
            "last": None,
            "eval": None,
            "best": None,
            "error": "RuntimeError: out of paper" if state == "failed" else None,
            "first_nonfinite_step": fails_at,
            "first_failure_step": fails_at,
            "judgement": judge(run).as_json() if ended else None,
        },
    )


def write_queued(root: Path, run: RunDir) -> None:
    """A ledger of its own for a run whose submitter lives."""
    number = len(list((root / ".submissions").glob("*.json")))
    resources = Resources(parallel_runs=1, threads_per_run=1, gpus_per_run=0, devices=None, time_limit_s=60.0)
    ledger = Ledger(
        campaign=f"queued_20261122_{number:06d}",
        cluster="local",
        executor="local",
        created=time.time(),
        request=[],
        resources=resources,
        owner=Process.current(),
        jobs=[Job(index=0, run_id=run.run_id)],
    )
    write_ledger(ledger_path(root, ledger.campaign), ledger)


def campaign_of(root: Path, seeds: int = 3) -> list[RunDir]:
    """The expected picture: before dies, after stays finite and learns nothing, cured learns."""
    runs = []
    for seed in range(seeds):
        runs.append(make_run(root, "before", seed, fails_at=(8, 19, 31)[seed % 3]))
        runs.append(make_run(root, "after", seed, gain=-0.2))
        runs.append(make_run(root, "cured", seed, gain=1.2))
    return runs
