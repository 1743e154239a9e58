"""That what `make bench` measures can run: the trainer had left it behind. No figure is asserted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.benchmarks import step_cost
from tests.stability.loops import ResNet


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_every_form_of_a_step_runs() -> None:
    batch = (torch.randn(2, 3, 8, 8), torch.randint(10, (2,)))
    model = step_cost.Model(
        lambda: ResNet((2, 2)), batch, lambda network, given: F.cross_entropy(network(given[0]), given[1])
    )
    table = list(step_cost.rows("small", model, rounds=step_cost.SLOW_EVERY))
    assert [row.split(" | ")[1] for row in table] == [
        "bare",
        "bare again",
        "harden()",
        "hpcstab's trainer step",
        "anomaly mode",
        "naive check",
    ]
    assert not any("nan" in row for row in table)
