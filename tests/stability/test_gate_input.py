"""What a gate is given by users: odd models, optimizers and losses are either right or a clear error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.errors import ConfigError
from hpcstab.stability.gate.gate import Gate


class Overriding(torch.optim.AdamW):
    """Says that it is fused, and has a step of its own that looks at nothing."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(0.1 * parameter.grad)


def sgd(network: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.1, **options)


def decided(gate: Gate, network: nn.Module, inputs: Tensor, step: int = 0) -> float:
    gate.begin(step)
    loss = network(inputs).square().mean()
    loss.backward()
    return float(gate.step(loss).figures[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [True, False])
def test_parameters_of_any_float_are_clipped(dtype: torch.dtype, fused: bool) -> None:
    """The kernels of fused optimizers read an fp32 factor, whatever the gradients are."""
    torch.manual_seed(0)
    networks = [nn.Linear(3, 2).to(dtype) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    inputs = torch.randn(4, 3).to(dtype)
    assert decided(Gate(networks[0], [sgd(networks[0], fused=fused)], "closed", 0.01), networks[0], inputs) == 0.0
    bare = sgd(networks[1], fused=fused)
    networks[1](inputs).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(networks[1].parameters(), 0.01)
    bare.step()
    assert torch.allclose(networks[0].weight, networks[1].weight, rtol=1e-2 if dtype != torch.float64 else 1e-6)


def test_a_buffer_without_elements_is_no_obstacle() -> None:
    network = nn.Linear(2, 2)
    network.register_buffer("nothing", torch.empty(0))
    assert decided(Gate(network, [sgd(network)], "closed"), network, torch.ones(1, 2)) == 0.0


def test_a_layer_that_is_thawed_later_is_gated_too() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first = network[0].requires_grad_(False)
    gate = Gate(network, [sgd(network, momentum=0.9, fused=True)], "closed")
    assert decided(gate, network, torch.ones(1, 2)) == 0.0
    first.requires_grad_(True)
    first.weight.register_hook(lambda gradient: gradient * math.nan)
    assert decided(gate, network, torch.ones(1, 2), step=1) == 1.0
    assert bool(first.weight.isfinite().all())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, fused=True),
        lambda p: torch.optim.AdamW(p),
        lambda p: torch.optim.Adagrad(p, fused=True),
        lambda p: torch.optim.RMSprop(p),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, fused=True),
        lambda p: Overriding(p, fused=True),
    ],
)
def test_any_optimizer_forgets_a_first_bad_step(optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    weights = []
    for values in ([math.nan, 1.0, 2.0], [1.0, 2.0]):
        torch.manual_seed(0)
        network = nn.Linear(2, 2)
        chosen = optimizer(network.parameters())
        gate = Gate(network, [chosen], "closed")
        for step, value in enumerate(values):
            chosen.zero_grad()
            if decided(gate, network, torch.full((1, 2), value), step):
                gate.release(step, armed=True)
        weights.append(network.weight.detach())
    assert torch.equal(*weights)


def test_a_model_that_cannot_be_gated_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameters that require a gradient"):
        Gate(nn.ReLU(), [], "closed")
    halves = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    with pytest.raises(ConfigError, match="lies on cpu, meta"):
        Gate(halves, [], "closed")


def test_an_optimizer_that_cannot_be_gated_is_refused() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="got a function as optimizer"):
        Gate(network, [sgd], "closed")  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="LBFGS"):
        Gate(network, [torch.optim.LBFGS(network.parameters())], "closed")
    foreign = torch.optim.SGD([*network.parameters(), *nn.Linear(2, 2).parameters()], lr=0.1)
    with pytest.raises(ConfigError, match="steps 2 of 4 parameter tensors that are not the model's"):
        Gate(network, [foreign], "closed")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda network, inputs: network(inputs).mean().item(), "the loss is a float"),
        (lambda network, inputs: network(inputs), r"the loss has shape \(1, 2\)"),
        (lambda network, inputs: inputs.mean(), "no parameter has a gradient"),
    ],
)
def test_what_is_no_loss_is_refused_and_the_step_can_be_given_again(
    loss: Callable[[nn.Module, Tensor], Any], message: str
) -> None:
    network, inputs = nn.Linear(2, 2), torch.ones(1, 2)
    before = network.weight.detach().clone()
    gate = Gate(network, [sgd(network)], "closed")
    gate.begin(0)
    if "gradient" not in message:
        network(inputs).mean().backward()
    with pytest.raises(ConfigError, match=message):
        gate.step(loss(network, inputs))
    assert torch.equal(network.weight, before)
    right = network(inputs).mean()
    right.backward()
    assert float(gate.step(right).refused) == 0.0
    with pytest.raises(ConfigError, match="called twice"):
        gate.step(right)


def test_a_sparse_gradient_is_refused() -> None:
    network = nn.Embedding(4, 2, sparse=True)
    with pytest.raises(ConfigError, match="sparse"):
        decided(Gate(network, [sgd(network)], "closed"), network, torch.tensor([1]))


def test_parameters_that_come_later_are_refused() -> None:
    network = nn.ModuleList([nn.Linear(2, 2)])
    optimizer = sgd(network)
    gate = Gate(network, [optimizer], "closed")
    optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    with pytest.raises(ConfigError, match="more parameters after the gate was made"):
        decided(gate, network[0], torch.ones(1, 2))
