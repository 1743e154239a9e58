"""Faults that a config declares: in the batch of their step and nowhere else, and what each gate makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from hpcstab.config.common import DataFault
from hpcstab.errors import ConfigError
from hpcstab.judgement import judge
from hpcstab.metrics import read_events, read_history
from hpcstab.training.faults import with_fault
from tests.conftest import MakeRun
from tests.training.test_resume import attempt, final_state, numbers

FAULT = DataFault(step=2, kind="inf_pixel")
DECLARED = "data.faults=[{step: 2, kind: inf_pixel}]"


def batches() -> list[Any]:
    images, labels = torch.zeros(3, 1, 4, 4), torch.arange(3)
    return [images, (labels, images), {"label": labels, "images": [images, images]}]


def tensors(batch: Any) -> list[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("batch", batches(), ids=["tensor", "tuple", "dict"])
@pytest.mark.parametrize("kind", ["inf_pixel", "nan_pixel"])
def test_one_element_of_the_first_sample_is_bad(batch: Any, kind: Any) -> None:
    changed = with_fault(batch, DataFault(step=2, kind=kind))
    assert type(changed) is type(batch)
    first, *others = [tensor for tensor in tensors(changed) if tensor.is_floating_point()]
    bad = (~first.isfinite()).nonzero().tolist()
    assert bad == [[0, 0, 2, 0]]
    value = float(first[0, 0, 2, 0])
    assert math.isnan(value) if kind == "nan_pixel" else value == math.inf
    assert all(bool(tensor.isfinite().all()) for tensor in others)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(batch)), (
        "the data set's own tensors stay as they are"
    )


def test_a_batch_without_floats_is_an_error() -> None:
    with pytest.raises(ConfigError, match="step 2 has no floating-point tensor"):
        with_fault({"label": torch.arange(3), "name": "x"}, FAULT)


def test_two_faults_in_one_step_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="two faults in one step"):
        make_run(settings=["data.faults=[{step: 2, kind: inf_pixel}, {step: 2, kind: nan_pixel}]"])


def test_a_gate_that_skips_the_step_leaves_its_buffers_poisoned(make_run: MakeRun) -> None:
    """Write-up 2's beginning: weights finite, running statistics not, and nothing can be validated."""
    run = make_run(variant="after", settings=[DECLARED, "stability.gate=step_only"])
    assert attempt(run) == "diverged"
    rows = list(read_history(run.metrics_csv).values())
    assert [(row["loss_finite"], row["outcome"]) for row in rows[1:3]] == [("1", "applied"), ("0", "skipped")]
    network = final_state(run)["network"]
    bad = {name.rpartition(".")[2] for name, value in network.items() if not bool(value.isfinite().all())}
    assert bad == {"running_mean", "running_var"}
    assert "eval_empty" in [event["kind"] for event in read_events(run.events_jsonl)]


def test_a_closed_gate_leaves_it_out_and_a_declared_fault_masks_nothing(make_run: MakeRun) -> None:
    run = make_run(variant="cured", settings=[DECLARED])
    assert attempt(run) == "completed"
    assert read_history(run.metrics_csv)[2]["outcome"] == "skipped"
    judgement = judge(run)
    assert judgement.unmasked.answer == "yes"
    assert judgement.counts["refused_declared"] == 1
    undeclared = make_run(variant="cured", seed=1)
    assert attempt(undeclared) == "completed"
    assert judge(undeclared).counts["refused_declared"] == 0


@pytest.mark.parametrize("stop_after", [2, 3])
def test_resumed_on_either_side_of_the_fault_is_uninterrupted(make_run: MakeRun, stop_after: int) -> None:
    whole, parts = (make_run(variant="cured", settings=[DECLARED]) for _ in range(2))
    attempt(whole)
    assert attempt(parts, stop_after) == "stopped"
    attempt(parts)
    assert numbers(list(read_history(parts.metrics_csv).values())) == numbers(
        list(read_history(whole.metrics_csv).values())
    )
