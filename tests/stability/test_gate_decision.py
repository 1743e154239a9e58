"""What the gate calls bad, whom it tells, and what it costs in operations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hpcstab.stability.gate.decision import Decision, GateFigures
from hpcstab.stability.gate.gate import Gate, GateMode
from tests.benchmarks import step_cost
from tests.stability.loops import ResNet


class Scaled(nn.Module):
    """One weight and one watched buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, factor: float) -> Tensor:
        return self.weight * factor


def gated(mode: GateMode = "closed", **options: Any) -> tuple[Scaled, Gate]:
    network = Scaled()
    return network, Gate(network, [torch.optim.SGD(network.parameters(), lr=0.1, fused=True)], mode, **options)


def decided(network: Scaled, gate: Gate, factor: float = 1.0, offset: float = 0.0, step: int = 0) -> Decision:
    network.weight.grad = None
    gate.begin(step)
    loss = network(factor) + offset
    loss.backward()
    return gate.step(loss)


def figures(decision: Decision) -> GateFigures:
    return GateFigures.of(decision.figures.tolist())


@pytest.mark.parametrize("offset", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("limit", [math.inf, 10.0])
def test_a_loss_that_is_not_finite_is_bad_with_a_finite_gradient(offset: float, limit: float) -> None:
    network, gate = gated()
    gate.limit(loss=limit)
    said = figures(decided(network, gate, offset=offset))
    assert said.bad
    assert said.grad_norm == 1.0
    assert float(network.weight.detach()) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("mode", "bad"), [("closed", True), ("open", True), ("step_only", False)])
def test_a_buffer_that_is_not_finite_is_bad_but_for_step_only(value: float, mode: GateMode, bad: bool) -> None:
    network, gate = gated(mode)
    network.get_buffer("seen")[1] = value
    said = figures(decided(network, gate))
    assert not said.buffers_finite
    assert said.bad is bad


def test_the_largest_finite_values_are_not_bad() -> None:
    largest = torch.finfo(torch.float32).max
    network, gate = gated()
    network.get_buffer("seen")[0] = -largest
    for offset in (largest, -largest):
        decision = decided(network, gate, offset=offset)
        assert figures(decision) == GateFigures(offset, 1.0, True, 1.0, False)
        assert float(decision.refused) == 0.0


def test_limits_are_for_the_sides_that_they_say() -> None:
    network, gate = gated()
    gate.limit(loss=-5.0, grad_norm=2.0)
    assert figures(decided(network, gate, offset=-100.0)).bad is False
    assert figures(decided(network, gate, offset=-4.0)) == GateFigures(pytest.approx(-3.1), 1.0, True, 1.0, True)
    gate.release(0, armed=True)
    assert figures(decided(network, gate, factor=2.5, offset=-100.0)).bad is True
    gate.release(0, armed=True)
    gate.limit()
    assert figures(decided(network, gate, factor=2.5)).bad is False


def test_an_armed_gate_refuses_until_the_host_has_looked() -> None:
    network, gate = gated()
    assert float(decided(network, gate, math.nan).refused) == 1.0
    assert float(decided(network, gate, step=1).refused) == 1.0
    assert float(network.weight.detach()) == 1.0
    gate.release(0, armed=True)
    assert float(decided(network, gate).refused) == 0.0
    assert float(network.weight.detach()) == pytest.approx(0.9)


@pytest.mark.parametrize(("mode", "refused"), [("open", False), ("step_only", True)])
def test_a_gate_that_was_looked_at_calls_each_step_bad_for_itself(mode: GateMode, refused: bool) -> None:
    network, gate = gated(mode)
    gate.release(0, armed=False)
    bad = decided(network, gate, offset=math.nan)
    assert (figures(bad).bad, bool(bad.refused), bad.refuses) == (True, refused, refused)
    good = decided(network, gate)
    assert (figures(good).bad, bool(good.refused)) == (False, False)


def test_a_held_gate_refuses_all_and_calls_bad_what_is() -> None:
    network, gate = gated()
    assert figures(decided(network, gate, math.nan)).bad
    with gate.held():
        healthy = decided(network, gate)
        assert (figures(healthy).bad, bool(healthy.refused), healthy.refuses) == (False, True, True)
        assert figures(decided(network, gate, math.nan)).bad
    assert float(network.weight.detach()) == 1.0


class Operations(TorchDispatchMode):
    """Counts what runs a kernel: a launch each on a GPU, where small steps take as long as their launches."""

    _FREE = ("detach", "view", "unbind", "unsqueeze", "expand", "aten.t.", "_record_function", "_local_scalar", "empty")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not any(name in str(func) for name in self._FREE)
        return func(*args, **(kwargs or {}))


def num_operations(step: step_cost.Step) -> int:
    for _ in range(4):  # the first ones make the optimizer's state, and read nothing yet
        step()
    with Operations() as operations:
        step()
    return operations.count


@pytest.mark.parametrize(("form", "most"), [(step_cost.public, 5), (step_cost.runner, 6)])
def test_a_healthy_step_runs_few_more_operations_than_a_bare_one(form: Any, most: int) -> None:
    batch = (torch.randn(2, 3, 8, 8), torch.randint(10, (2,)))
    model = step_cost.Model(lambda: ResNet((2, 2)), batch, lambda net, given: F.cross_entropy(net(given[0]), given[1]))
    assert num_operations(form(model)) - num_operations(step_cost.bare(model)) <= most
