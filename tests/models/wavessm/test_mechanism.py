"""How the write-up's training fails, end to end at scale tiny: a skipped step poisons what the evaluation reads.

Its step 2 carries the declared fault, and an evaluation comes right after it.
"""

from __future__ import annotations

import math

import pytest

from hpcstab.execute import replay
from hpcstab.judgement import judge
from hpcstab.metrics import read_events, read_history
from hpcstab.models.wavessm import state_space
from hpcstab.rundir import RunDir, read_json
from tests.conftest import MakeRun
from tests.models.wavessm.test_network import KEY
from tests.training.test_resume import final_state

FAULT_STEP = 2
STATISTICS = (".running_mean", ".running_var")


def state_of(run: RunDir) -> str:
    status = read_json(run.status_json)
    assert status is not None
    return str(status["state"])


def outcomes(run: RunDir) -> list[str]:
    return [row["outcome"] for row in read_history(run.metrics_csv).values()]


def events_of(run: RunDir, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(run.events_jsonl) if event["kind"] == kind]


def sick_tensors(run: RunDir) -> set[str]:
    network = final_state(run)["network"]
    return {name for name, value in network.items() if not bool(value.isfinite().all())}


@pytest.mark.parametrize("fix", [None, "clip_half", "bn_config", "fp32_refinement", "fp32_scan"])
def test_a_skipped_step_poisons_the_statistics_and_nothing_can_be_validated(
    train_run: MakeRun, fix: str | None
) -> None:
    """None of what the write-up gives as a cause is one: removed alone, it all ends the same."""
    run = train_run("wavessm", f"before+{fix}" if fix else "before")
    assert state_of(run) == "diverged"
    assert outcomes(run)[FAULT_STEP] == "skipped"
    sick = sick_tensors(run)
    assert KEY in sick
    assert sick == {name for name in final_state(run)["network"] if name.endswith(STATISTICS)}, (
        "no weight, every buffer"
    )
    assert events_of(run, "eval_empty")


@pytest.mark.parametrize("kept_bytes", [None, 0])
def test_replay_names_the_bad_input(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, kept_bytes: int | None
) -> None:
    """Also where the states of the scan are computed again in the backward pass, as those of large images are."""
    if kept_bytes is not None:
        monkeypatch.setattr(state_space, "_MAX_KEPT_BYTES", kept_bytes)
    run = train_run("wavessm", "before")
    replayed = replay(run.capsules / f"step_{FAULT_STEP:08d}").replay
    root = replayed.finding.root
    assert replayed.same is True
    assert root is not None
    assert (root.name, root.kind, root.samples) == ("batch['corrupted']", "input", (0,))
    assert replayed.advice.verdict == "data"


def test_the_spectrum_stays_far_below_the_range_of_fp16(train_run: MakeRun) -> None:
    """The write-up's own explanation, while all is finite."""
    rows = list(read_history(train_run("wavessm", "before").metrics_csv).values())
    spectra = [float(row["diag_spectrum_absmax"]) for row in rows if row["loss_finite"] == "1"]
    assert spectra
    assert max(spectra) < 100
    assert math.isnan(float(rows[FAULT_STEP]["diag_spectrum_absmax"]))


def test_after_is_kept_going_by_masks_and_the_judgement_says_so(train_run: MakeRun) -> None:
    run = train_run("wavessm", "after")
    assert (state_of(run), sick_tensors(run)) == ("completed", set())
    repairs = events_of(run, "batchnorm_repaired")
    assert KEY.rpartition(".")[0] in {event["data"]["layer"] for event in repairs}  # type: ignore[index]
    judgement = judge(run)
    assert judgement.unmasked.answer == "no"
    assert judgement.counts["masked"] == len(repairs) > 0
    assert judgement.finite.answer == "no", "the statistics were NaN until they were reset"
    assert not events_of(run, "eval_empty")


def test_cured_takes_the_step_back_and_masks_nothing(train_run: MakeRun) -> None:
    run = train_run("wavessm", "cured")
    assert (state_of(run), sick_tensors(run)) == ("completed", set())
    assert outcomes(run) == ["applied", "applied", "skipped", "applied"]
    judgement = judge(run)
    assert (judgement.finite.answer, judgement.unmasked.answer) == ("yes", "yes")
    assert (judgement.counts["refused_declared"], judgement.counts["masked"]) == (1, 0)


def test_without_the_fault_before_stays_finite_as_long(train_run: MakeRun) -> None:
    """The trigger is declared, and it is the trigger."""
    run = train_run("wavessm", "before", settings=["data.faults=[]"])
    assert (state_of(run), sick_tensors(run)) == ("completed", set())
