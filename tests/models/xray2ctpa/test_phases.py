"""The third phase: a discriminator with an optimizer of its own, under one gate."""

from __future__ import annotations

import pytest

from hpcstab.metrics import read_history
from hpcstab.rundir import RunDir
from tests.conftest import MakeRun
from tests.training.test_resume import assert_as_if_nothing_had_happened, attempt, final_state

ALL_TERMS = ["losses.phases={}", "losses.skip_auxiliary_under_amp=false"]
CURED = [
    *ALL_TERMS,
    "losses.weights.adversarial=0.001",
    "losses.weights.discriminator=0.001",
    "discriminator_optimizer.lr=0.0005",
]


def last_row(run: RunDir) -> dict[str, str]:
    return list(read_history(run.metrics_csv).values())[-1]


def test_both_sides_are_trained(train_run: MakeRun) -> None:
    run = train_run("xray2ctpa", "cured", settings=CURED)
    row = last_row(run)
    assert float(row["loss_discriminator"]) > 0
    assert float(row["loss_adversarial"]) != 0
    optimizers = final_state(run)["optimizer"]
    assert [*optimizers] == ["network", "discriminator"]
    assert [each["param_groups"][0]["lr"] for each in optimizers.values()] == [1e-3, 5e-4]
    assert all(each["state"] for each in optimizers.values())


@pytest.mark.slow
def test_resumed_is_uninterrupted_bit_for_bit(make_run: MakeRun) -> None:
    whole, parts = (make_run("xray2ctpa", "cured", settings=CURED) for _ in range(2))
    assert attempt(whole) == "completed"
    assert attempt(parts, 2) == "stopped"
    assert attempt(parts) == "completed"
    assert_as_if_nothing_had_happened(whole, parts)


def test_a_step_of_bad_data_leaves_nothing_in_either(train_run: MakeRun) -> None:
    """The gate refuses both updates: what is behind the bad step is what a training without its batch would have."""
    run = train_run("xray2ctpa", "cured", settings=[*CURED, "data.faults=[{step: 2, kind: nan_pixel}]"])
    assert [row["outcome"] for row in read_history(run.metrics_csv).values()] == ["applied"] * 2 + ["skipped"] + [
        "applied"
    ] * 3
    state = final_state(run)
    assert all(bool(value.isfinite().all()) for value in state["network"].values())
    for optimizer in state["optimizer"].values():
        assert {float(values["step"]) for values in optimizer["state"].values()} == {5.0}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ALL_TERMS])
def test_the_write_ups_own_fix_keeps_its_phases_from_ever_beginning(train_run: MakeRun, settings: list[str]) -> None:
    """Phases or not: under mixed precision its sixth fix leaves all auxiliary terms out."""
    run = train_run("xray2ctpa", "phased", settings=settings[:1])
    assert {row["loss_perceptual"] for row in read_history(run.metrics_csv).values()} == {"0.0"}
    assert {row["loss_discriminator"] for row in read_history(run.metrics_csv).values()} == {"0.0"}


def test_a_discriminator_that_never_trains_is_no_learning(train_run: MakeRun) -> None:
    """Its modules stand still, which the judgement sees."""
    from hpcstab.judgement import judge

    judgement = judge(train_run("xray2ctpa", "phased", settings=["losses.phases={}"]))
    assert judgement.learned.answer == "no"
    assert any("none in discriminator" in line for line in judgement.learned.evidence)
