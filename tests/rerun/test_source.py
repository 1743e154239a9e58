"""Which checkpoint a rerun begins with, and what becomes of a sick or a damaged one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpcstab.checkpoint import read_checkpoint
from hpcstab.doctor import repair
from hpcstab.errors import CheckpointError, ConfigError
from hpcstab.execute import reestimate
from hpcstab.metrics import read_evals
from hpcstab.rundir import RunDir
from tests.conftest import MakeRun
from tests.rerun.conftest import Begin, event, plan, poison, rewrite, train
from tests.training.test_resume import flip

LONGER = ("trainer.max_steps=9",)


def sicken(run: RunDir, step: int, what: str = "running_var") -> None:
    rewrite(run, step, lambda state: poison(state, what), healthy=False)


def step_of(run: RunDir, wanted: str, settings: tuple[str, ...] = LONGER) -> int:
    return plan(run, wanted, settings=settings).step


def test_words_steps_and_names(parent: RunDir) -> None:
    sicken(parent, 6)
    assert step_of(parent, "healthy") == 4
    assert step_of(parent, "last") == 6
    assert [step_of(parent, wanted) for wanted in ("4", "0004", "step_00000004", str(parent.checkpoint(4)))] == [4] * 4


def test_best_is_that_of_the_best_evaluation(parent: RunDir) -> None:
    index = parent.checkpoints / "index.json"
    evals = {int(row["step"]): float(row["psnr"]) for row in read_evals(parent.evals_csv)}
    assert step_of(parent, "best") == max((2, 4, 6), key=lambda step: evals[step])
    index.write_text(json.dumps({**json.loads(index.read_text()), "best": "step_00000002"}))
    assert step_of(parent, "best") == 2
    index.write_text(json.dumps({**json.loads(index.read_text()), "best": None}))
    with pytest.raises(CheckpointError, match=r"so there is no best; there are: 6, 4, 2"):
        plan(parent, "best")


def test_a_damaged_one_is_left_out_and_said(parent: RunDir) -> None:
    flip(parent.checkpoint(6) / "state.pt")
    rerun = plan(parent, "last")
    assert rerun.told[0].startswith("left out: ") and "step_00000006" in rerun.told[0]
    assert rerun.told[1].startswith(f"goes on from step 4 of {parent.run_id}")
    with pytest.raises(CheckpointError, match="differs from what was written"):
        plan(parent, "6")
    for step in (4, 2):
        flip(parent.checkpoint(step) / "state.pt")
    with pytest.raises(CheckpointError, match=r"no healthy checkpoint that passes: 3 damaged, the newest: "):
        plan(parent)


def test_a_sick_one_goes_through_the_doctor_and_it_is_said(parent: RunDir, begin: Begin) -> None:
    sicken(parent, 4)
    before = {path: path.read_bytes() for path in parent.checkpoints.rglob("*") if path.is_file()}
    rerun = plan(parent, "4")
    line = next(line for line in rerun.told if line.startswith("repaired by the doctor: "))
    assert "reestimated network.encoder.features.2.0, " in line
    assert {path: path.read_bytes() for path in parent.checkpoints.rglob("*") if path.is_file()} == before
    run = begin(rerun)
    identity = run.identity()
    assert identity["label"].startswith("after (rerun from step 4, repaired)")
    assert identity["parent"]["repaired"] == [line.removeprefix("repaired by the doctor: ")]
    state, manifest = read_checkpoint(run.checkpoint(4))
    assert manifest["healthy"]
    assert all(tensor.isfinite().all() for tensor in state["network"].values())
    assert train(run) == "completed"
    assert event(run, "branched")["data"]["repaired"] == identity["parent"]["repaired"]


def test_what_the_doctor_has_written_before_is_taken(parent: RunDir) -> None:
    sicken(parent, 6)
    assert repair(parent.checkpoint(6), reestimate=reestimate).out == parent.checkpoints / "step_00000006_FIXED"
    for wanted in ("healthy", "last", "step_00000006_FIXED"):
        rerun = plan(parent, wanted, settings=LONGER)
        assert rerun.planned.branch is not None
        facts: Any = rerun.planned.branch.parent
        assert (facts["checkpoint"], facts["step"]) == ("step_00000006_FIXED", 6)
        assert facts["repaired"][0].startswith("reestimated network.encoder.features.2.0")


def test_sick_weights_are_refused_with_what_to_do(parent: RunDir) -> None:
    sicken(parent, 6, "to_latent.weight")
    with pytest.raises(CheckpointError, match=r"step_00000006 is sick \(network.encoder.to_latent.weight: .*go back"):
        plan(parent, "last", settings=LONGER)


def test_where_nothing_is_left_to_train(parent: RunDir) -> None:
    with pytest.raises(ConfigError, match=r"at step 6 of 6 nothing is left to train; say --from STEP .*max_steps=12"):
        plan(parent)
    with pytest.raises(ConfigError, match="at step 4 of 4 nothing is left"):
        plan(parent, "4", settings=("trainer.max_steps=4",))


def test_a_length_in_epochs_is_counted(parent: RunDir) -> None:
    """128 training blocks in batches of 32 are 4 steps an epoch."""
    epochs = ("trainer.max_steps=null", "data.batch_size=32")
    with pytest.raises(ConfigError, match=r"at step 6 of 4 nothing .* --set trainer.epochs=2"):
        plan(parent, settings=(*epochs, "trainer.epochs=1"))
    assert step_of(parent, "healthy", (*epochs, "trainer.epochs=2")) == 6


def test_a_run_without_checkpoints(make_run: MakeRun) -> None:
    run = make_run()
    for wanted in ("healthy", "last", "best"):
        with pytest.raises(CheckpointError, match="has no checkpoint; --from FILE begins with weights"):
            plan(run, wanted)


def test_only_sick_ones(parent: RunDir) -> None:
    for step in (2, 4, 6):
        sicken(parent, step)
    with pytest.raises(CheckpointError, match="3 labelled sick; --from last takes a sick one through the doctor"):
        plan(parent)


@pytest.mark.parametrize("wanted", ["5", "step_00000005", "no_such_file.pt"])
def test_one_that_is_not_there(parent: RunDir, wanted: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"no such checkpoint.*; there are: 6, 4, 2\. Words .* healthy, last, best"
    ):
        plan(parent, wanted)


def test_one_of_another_version_is_an_error_and_no_crash(parent: RunDir) -> None:
    rewrite(parent, 4, lambda state: state.pop("batchnorm"))
    with pytest.raises(CheckpointError, match=r"was not written by this version of hpcstab: 'batchnorm'"):
        plan(parent, "4", settings=LONGER)
