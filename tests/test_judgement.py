"""Finite, learned, unmasked: each answer from hand-written files, with its evidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcstab.judgement import judge
from hpcstab.metrics import (
    EVALS_COLUMNS,
    METRICS_COLUMNS,
    PROBES_COLUMNS,
    CsvAppender,
    EventLog,
    evals_header,
)
from hpcstab.rundir import RunDir, create_run_dir, write_json

FLOOR_DB = 15.0
MARGIN_DB = 0.1


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run without history: identity, task and a floor of 15 dB."""
    run = create_run_dir(tmp_path, "m", "after", 0, "0" * 64)
    write_json(run.run_json, {"run_id": run.run_id, "compare": {"primary": "psnr", "margin": MARGIN_DB}})
    floor = {"name": "mean", "role": "floor", "scores": {"psnr": FLOOR_DB}}
    reference = {"name": "codec", "role": "reference", "scores": {"psnr": 99.0}}
    metric = {"name": "psnr", "unit": "dB", "direction": "higher", "about": ""}
    write_json(run.task_json, {"metrics": [metric], "baselines": {"validation": [floor, reference]}})
    return run


def write_steps(run: RunDir, losses: list[float], *, outcome: str = "applied", masked: int = 0) -> None:
    file = CsvAppender(run.metrics_csv, METRICS_COLUMNS)
    for step, loss in enumerate(losses):
        finite = loss - loss == 0
        row: dict[str, object] = dict.fromkeys(METRICS_COLUMNS, 0)
        row |= {"step": step, "loss": loss, "loss_finite": finite, "grad_norm": loss, "grad_finite": finite}
        file.append(row | {"outcome": "applied" if finite else outcome, "num_masked": masked})
    file.close()


def write_eval(run: RunDir, psnr: float) -> None:
    file = CsvAppender(run.evals_csv, evals_header(["psnr"]))
    file.append(dict.fromkeys(EVALS_COLUMNS, 0) | {"split": "validation", "weights": "raw", "psnr": psnr})
    file.close()


def write_probe(run: RunDir, **norms: tuple[float, float]) -> None:
    file = CsvAppender(run.probes_csv, PROBES_COLUMNS)
    for module, (grad_norm, update_norm) in norms.items():
        row = {"module": module, "grad_norm": grad_norm, "update_norm": update_norm}
        file.append(dict.fromkeys(PROBES_COLUMNS, 0) | row)
    file.close()


def answers(run: RunDir) -> tuple[str, str, str]:
    judgement = judge(run)
    return judgement.finite.answer, judgement.learned.answer, judgement.unmasked.answer


def test_three_times_yes_is_stable(run: RunDir) -> None:
    write_steps(run, [3.0, 2.0, 1.0])
    write_eval(run, FLOOR_DB + 1)
    write_probe(run, encoder=(1.0, 0.1))
    assert answers(run) == ("yes", "yes", "yes")
    assert judge(run).stable
    assert any("+1.00 against floor 'mean' 15.00" in line for line in judge(run).learned.evidence)


def test_finite_is_not_learning(run: RunDir) -> None:
    """The reference baseline does not count, the margin does, and the last evaluation decides."""
    write_steps(run, [3.0, 2.0, 1.0])
    write_eval(run, FLOOR_DB + 5)
    write_eval(run, FLOOR_DB + MARGIN_DB / 2)
    write_probe(run, encoder=(1.0, 0.1))
    assert answers(run) == ("yes", "no", "yes")
    assert not judge(run).stable


def test_a_module_that_never_moves_is_not_learning(run: RunDir) -> None:
    """The detached hyper-network of write-up 3: a good metric does not save it."""
    write_steps(run, [3.0, 2.0])
    write_eval(run, FLOOR_DB + 5)
    write_probe(run, hypernet=(0.0, 0.0), cell=(1.0, 0.1))
    assert answers(run)[1] == "no"
    assert any("none in hypernet" in line for line in judge(run).learned.evidence)


def test_an_applied_non_finite_step_is_not_finite(run: RunDir) -> None:
    write_steps(run, [3.0, float("nan"), 1.0])
    assert answers(run)[0] == "no"
    assert any("step 1 applied" in line for line in judge(run).finite.evidence)


def test_a_refused_non_finite_step_stays_finite_and_counts_like_a_mask(run: RunDir) -> None:
    write_steps(run, [3.0, float("inf"), 1.0], outcome="skipped")
    assert (answers(run)[0], answers(run)[2]) == ("yes", "no")


def test_a_mask_that_fired_voids_stability(run: RunDir) -> None:
    write_steps(run, [3.0, 1.0], masked=2)
    assert answers(run)[2] == "no"
    assert "masks fired 4 times" in judge(run).unmasked.evidence


def test_a_sick_state_is_not_finite_even_where_every_loss_is(run: RunDir) -> None:
    """Write-up 2's cascade: parameters fine, loss fine, buffers NaN, no valid validation batch."""
    write_steps(run, [3.0, 1.0])
    log = EventLog(run.events_jsonl, 1)
    log.write("diverged", 2, 2, reason="none of 2 batches was valid")
    log.close()
    assert answers(run)[0] == "no"


def test_a_run_without_records_is_unknown_and_never_stable(run: RunDir) -> None:
    assert answers(run) == ("unknown", "unknown", "unknown")
    assert not judge(run).stable
