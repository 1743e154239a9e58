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


def write_events(run: RunDir, *events: tuple[str, int, dict[str, object]]) -> None:
    log = EventLog(run.events_jsonl, 1)
    for kind, step, data in events:
        log.write(kind, step, step, **data)  # type: ignore[arg-type]
    log.close()


def test_what_acted_is_counted_once_and_shown(run: RunDir) -> None:
    """Events of a step that came again (a resume, a replay) count once; a refusal that was rolled back counts."""
    write_steps(run, [3.0, 2.0, 1.0])
    spike, nonfinite = {"reason": "spike"}, {"reason": "nonfinite_buffers"}
    write_events(
        run,
        ("step_refused", 1, spike),
        ("step_refused", 1, spike),
        ("rescaled", 2, {"loss_scale": 4.0}),
        ("rescaled", 2, {"loss_scale": 2.0}),
        ("rescaled", 2, {"loss_scale": 2.0}),
        ("backoff", 2, {"number": 1}),
        ("backoff", 2, {"number": 1}),
        ("rollback", 2, {"number": 1}),
    )
    judgement = judge(run)
    counts = {what: count for what, count in judgement.counts.items() if count and what != "clipped"}
    assert counts == {"spikes": 1, "rescaled": 2, "backoffs": 1, "rollbacks": 1}
    assert judgement.unmasked.answer == "yes"
    line = next(line for line in judgement.unmasked.evidence if "spikes" in line)
    assert "1 spikes refused, 2 loss-scale back-offs, 1 learning-rate back-offs, 1 rollbacks" in line
    write_events(run, ("step_refused", 2, nonfinite))
    assert judge(run).counts["refused_nonfinite"] == 1  # the last row of step 2 says that it was applied
    assert answers(run)[2] == "no"


def test_a_refusal_that_did_not_come_again_voids_unmasked(run: RunDir) -> None:
    """Without the gate the non-finite value would have been in the state."""
    write_steps(run, [3.0, 2.0])
    write_events(run, ("not_reproduced", 1, {"reason": "nonfinite_loss"}))
    assert answers(run)[2] == "no"
    assert "1 non-finite steps were refused and fine when they ran again" in judge(run).unmasked.evidence


def test_a_refusal_on_a_declared_fault_is_as_it_should_be(run: RunDir) -> None:
    write_steps(run, [3.0, float("nan"), 1.0], outcome="skipped")
    assert answers(run)[2] == "no"
    run.config_yaml.write_text("data:\n  faults:\n  - {step: 1, kind: inf_pixel}\n")
    assert answers(run)[2] == "yes"
    assert judge(run).counts["refused_declared"] == 1


def test_a_halted_run_has_not_learned(run: RunDir) -> None:
    write_steps(run, [3.0, 2.0, 1.0])
    write_eval(run, FLOOR_DB + 1)
    write_probe(run, encoder=(1.0, 0.1))
    write_events(run, ("halted", 3, {"reason": "no rung is left"}))
    assert answers(run) == ("yes", "no", "yes")
    assert "halted at step 3: no rung is left" in judge(run).learned.evidence


def test_a_state_that_was_gone_back_from_is_not_finite(run: RunDir) -> None:
    write_steps(run, [3.0, 2.0, 1.0])
    write_events(run, ("state_nonfinite", 2, {"reason": "1 tensors"}), ("rollback", 2, {"number": 1}))
    assert answers(run)[0] == "no"


def test_with_an_average_it_is_said_which_network_was_judged(run: RunDir) -> None:
    write_steps(run, [3.0, 4.0])
    write_eval(run, FLOOR_DB + 1)
    run.config_yaml.write_text("trainer: {ema_decay: 0.9}\n")
    assert "judged are the raw weights; their moving average was not evaluated" in judge(run).learned.evidence
    file = CsvAppender(run.evals_csv, evals_header(["psnr"]))
    file.append(dict.fromkeys(EVALS_COLUMNS, 0) | {"split": "validation", "weights": "ema", "psnr": 17.5})
    file.close()
    evidence = judge(run).learned.evidence
    assert "judged are the raw weights; their moving average has psnr 17.50" in evidence
    assert any(line.startswith("loss did not fall: 3 in the first") for line in evidence)


def repaired(layer: str, **found: object) -> dict[str, object]:
    counts = {"num_nan": 0, "num_inf": 0, "num_negative": 0, "num_masked": 0, "repair": "restore", "when": "step"}
    return {"layer": layer, **counts, **found}


def test_a_reset_of_running_statistics_is_a_mask_and_a_restored_one_is_not(run: RunDir) -> None:
    """A negative variance is finite; each layer counts once a check, however often its step came."""
    write_steps(run, [3.0, 2.0, 1.0], masked=1)
    restored = ("batchnorm_repaired", 1, repaired("norm", num_negative=2))
    write_events(run, restored, restored)
    assert judge(run).counts["repaired"] == 1
    assert judge(run).counts["masked"] == 3  # the rows' own
    reset = repaired("norm", num_negative=1, num_masked=1, repair="reset")
    write_events(run, ("batchnorm_repaired", 2, {**reset, "when": "load"}), ("batchnorm_repaired", 2, reset))
    assert judge(run).counts["masked"] == 5
    assert answers(run)[0] == "yes"


def test_a_reset_alone_voids_unmasked(run: RunDir) -> None:
    write_steps(run, [3.0, 2.0])
    write_events(run, ("batchnorm_repaired", 1, repaired("norm", num_negative=1)))
    assert answers(run)[2] == "yes"
    assert "1 running statistics restored or estimated anew" in judge(run).unmasked.evidence
    write_events(run, ("batchnorm_repaired", 1, repaired("norm", num_negative=1, num_masked=1, repair="reset")))
    assert answers(run)[2] == "no"


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        ("buffers_nonfinite", {"names": ["norm.running_var"]}, "1 buffers were non-finite, first norm.running_var"),
        ("batchnorm_sick", repaired("norm", num_nan=3), "running statistics of norm held 3 NaN and 0 infinities"),
        ("batchnorm_repaired", repaired("norm", num_inf=1), "running statistics of norm held 0 NaN and 1 infinities"),
    ],
)
def test_non_finite_buffers_were_in_the_state(run: RunDir, kind: str, data: dict[str, object], line: str) -> None:
    write_steps(run, [3.0, 2.0])
    write_events(run, (kind, 1, data))
    assert answers(run)[0] == "no"
    assert f"step 1: {line}" in judge(run).finite.evidence


def test_what_went_wrong_beside_the_steps_is_shown_and_voids_nothing(run: RunDir) -> None:
    """Failed batches beyond those that have an event count too."""
    write_steps(run, [3.0, 2.0])
    batch = {"weights": "raw", "num_failed": 30}
    write_events(
        run,
        *[("eval_batch_failed", 0, batch)] * 20,
        ("eval_batch_failed", 1, {**batch, "num_failed": 1}),
        ("eval_empty", 0, {"weights": "raw"}),
        ("term_nonfinite", 1, {"term": "mse"}),
        ("term_ramped_again", 1, {"term": "mse"}),
    )
    line = (
        "31 evaluation batches failed, 1 evaluations without a valid batch, 1 loss terms were not finite at some step"
    )
    assert f"{line}, 1 ramps of a loss term that went bad" in judge(run).unmasked.evidence
    assert (answers(run)[0], answers(run)[2]) == ("yes", "yes")
