"""A rerun without a change is its parent's continuation, to the bit; with one, it is said what of it starts anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcstab.checkpoint import read_checkpoint
from hpcstab.config import load_experiment, variant_names
from hpcstab.errors import CheckpointError
from hpcstab.metrics import read_evals, read_history
from hpcstab.rerun.source import checkpoints_of
from hpcstab.rundir import RunDir, read_json
from tests.conftest import MODELS, MakeRun
from tests.rerun.conftest import EVERY_TWO, Begin, event, plan, rewrite, train
from tests.training.test_resume import equal, final_state, numbers

MAIN = ("before", "after", "cured")
SICK_FROM_THE_FIRST_STEP = ("liquidreg", "before")
VARIANTS = [
    (model, name)
    for model in MODELS
    for name in variant_names(load_experiment(model))
    if name in MAIN and (model, name) != SICK_FROM_THE_FIRST_STEP
]


def beginning(run: RunDir) -> dict[str, Any]:
    (folder,) = run.checkpoints.glob("step_*")
    return read_checkpoint(folder)[0]


@pytest.mark.parametrize(("model", "variant"), VARIANTS)
def test_without_a_change_it_is_the_parent_bit_for_bit(
    train_run: MakeRun, begin: Begin, model: str, variant: str
) -> None:
    settings = [*EVERY_TWO, "trainer.ema_decay=0.9"]
    whole = train_run(model, variant, settings=settings)
    branch = int(checkpoints_of(whole)[1].name.removeprefix("step_"))
    rerun = plan(whole, str(branch))
    assert "nothing is changed: it is the continuation of its parent, bit for bit" in rerun.told
    run = begin(rerun)
    assert train(run, stop_after=0) == "stopped", "a rerun is resumed like any run"
    assert train(run) == (read_json(whole.status_json) or {})["state"]
    for part in ("network", "optimizer", "ema", "guarding", "batchnorm", "step", "update"):
        assert equal(final_state(whole)[part], final_state(run)[part]), part
    expected = [row for step, row in read_history(whole.metrics_csv).items() if step >= branch]
    assert numbers(list(read_history(run.metrics_csv).values())) == numbers(expected)
    from_branch = [row for row in read_evals(whole.evals_csv) if int(row["step"]) >= branch]
    assert numbers(read_evals(run.evals_csv)) == numbers(from_branch)


def test_a_run_that_was_sick_from_its_first_step_has_nothing_to_go_on_from(train_run: MakeRun) -> None:
    whole = train_run(*SICK_FROM_THE_FIRST_STEP, settings=[*EVERY_TWO, "trainer.ema_decay=0.9"])
    assert [folder.name for folder in checkpoints_of(whole)] == ["step_00000002"]
    with pytest.raises(CheckpointError, match=r"weights cannot be made up: .*; none was found beside this one"):
        plan(whole, "2")


def test_it_knows_where_it_comes_from(parent: RunDir, begin: Begin) -> None:
    run = begin(plan(parent, "4"))
    identity, manifest = run.identity(), read_checkpoint(parent.checkpoint(4))[1]
    assert identity["parent"] == {
        "run_id": parent.run_id, "path": str(parent.path), "checkpoint": "step_00000004", "step": 4, "update": 4,
        "sha256": manifest["state_sha256"], "repaired": None, "weights_only": False, "added": [], "overrides": {},
        "fresh": [],
    }  # fmt: skip
    own = parent.identity()
    same = ("model", "variant", "fixes", "overrides", "seed", "scale", "signature", "compare", "claims")
    assert {key: identity[key] for key in same} == {key: own[key] for key in same}
    assert identity["label"] == own["label"].replace("after", "after (rerun from step 4)")
    assert run.config_yaml.read_bytes() == parent.config_yaml.read_bytes()
    assert train(run) == "completed"
    assert event(run, "branched")["data"]["run_id"] == parent.run_id
    status = read_json(run.status_json)
    assert status is not None
    assert (status["first_step"], status["step"]) == (4, 6)


def test_what_a_run_remembers_of_itself_begins_empty(parent: RunDir, begin: Begin) -> None:
    rewrite(parent, 4, lambda state: state["status"].update(first_nonfinite_step=1, best={"value": 99.0, "step": 2}))
    run = begin(plan(parent, "4"))
    train(run)
    status = read_json(run.status_json)
    assert status is not None
    assert status["first_nonfinite_step"] is None
    assert status["best"]["step"] in (4, 6)


def test_a_longer_training_goes_on_from_the_end(parent: RunDir, begin: Begin) -> None:
    run = begin(plan(parent, "last", settings=("trainer.max_steps=8",)))
    assert train(run) == "completed"
    assert list(read_history(run.metrics_csv)) == [6, 7]
    assert run.identity()["parent"]["overrides"] == {"trainer.max_steps": 8}


def test_the_numbers_of_an_optimizer_are_the_new_ones_and_its_moments_stay(parent: RunDir, begin: Begin) -> None:
    rerun = plan(parent, "4", settings=("optimizer.name=adamw", "optimizer.weight_decay=0.25", "optimizer.eps=1e-6"))
    state, before = beginning(begin(rerun)), read_checkpoint(parent.checkpoint(4))[0]
    (group,) = state["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["eps"]) == (0.25, 1e-6)
    assert equal(state["optimizer"]["state"], before["optimizer"]["state"])
    assert not any(line.startswith("starts anew") for line in rerun.told)


def test_another_optimizer_starts_anew(parent: RunDir, begin: Begin) -> None:
    rerun = plan(parent, "4", settings=("optimizer.name=sgd", "optimizer.momentum=0.9"))
    assert "starts anew: the state of the optimizer (sgd keeps another one than adam)" in rerun.told
    run = begin(rerun)
    buffers = [entry["momentum_buffer"] for entry in beginning(run)["optimizer"]["state"].values()]
    assert not any(buffer.any() for buffer in buffers)
    assert train(run) == "completed"
    assert event(run, "branched")["data"]["fresh"] == run.identity()["parent"]["fresh"]


def test_a_moving_average_begins_with_the_weights(parent: RunDir, begin: Begin) -> None:
    rerun = plan(parent, "4", settings=("trainer.ema_decay=0.5",))
    assert "starts anew: the moving average (from the weights of this step)" in rerun.told
    run = begin(rerun)
    state = beginning(run)
    assert all(torch.equal(average, state["network"][name]) for name, average in state["ema"].items())
    assert train(run) == "completed"
    assert {row["weights"] for row in read_evals(run.evals_csv)} == {"raw", "ema"}


def test_guards_that_were_off_start_anew_behind_an_armed_gate(parent: RunDir, begin: Begin) -> None:
    rewrite(parent, 4, lambda state: state.update(gate_armed=False, nonfinite_streak=3))
    rerun = plan(parent, "4", "hardened")
    assert "starts anew: the guards (they were off)" in rerun.told
    run = begin(rerun)
    state = beginning(run)
    assert (state["gate_armed"], state["nonfinite_streak"]) == (True, 0)
    assert run.identity()["variant"] == "after+hardened"
    assert train(run) == "completed"


def test_guards_keep_their_budgets_and_forget_another_training(train_run: MakeRun, begin: Begin) -> None:
    run = train_run(variant="cured", settings=EVERY_TWO)
    rewrite(run, 4, lambda state: state["guarding"]["ladder"].update(num_backoffs=1, lr_factor=0.5))
    longer = beginning(begin(plan(run, "4", settings=("trainer.max_steps=9",))))["guarding"]
    assert len(longer["guards"]["loss_spike"]["values"]) == 4, "the same training, only longer"
    rerun = plan(run, "4", "lower_lr")
    slower = beginning(begin(rerun))["guarding"]
    assert slower["guards"]["loss_spike"]["values"] == []
    assert slower["ladder"] == longer["ladder"]
    assert "starts anew: what the guards know (they knew another training)" in rerun.told


def test_a_loss_scale_that_was_not_there_starts_anew(parent: RunDir, begin: Begin) -> None:
    fp16 = ("precision.dtype=fp16", "precision.loss_scale={initial: 128.0, growth_every: 10}", "stability.gate=closed")
    rerun = plan(parent, "4", settings=fp16)
    assert "starts anew: the loss scale" in rerun.told
    assert float(beginning(begin(rerun))["loss_scale"]["value"]) == 128.0
