"""The registration network: its size, whose weights run the cell, where gradients reach, and what bounds its answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcstab.models.liquidreg.config import Network
from hpcstab.models.liquidreg.liquid_cell import LiquidCell
from hpcstab.models.liquidreg.network import LiquidRegistration, positions
from tests.models.liquidreg.making import make_config


def make_network(variant: str = "before", *settings: str) -> LiquidRegistration:
    torch.manual_seed(0)
    keys = make_config(variant, "tiny", *settings).network
    assert isinstance(keys, Network)
    return LiquidRegistration(keys)


def volumes(num: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fixed, moving = torch.rand(2, num, 1, 16, 16, 16, generator=generator)
    return fixed, moving


def awake(network: LiquidRegistration) -> LiquidRegistration:
    """Weights start near 0; here they do not, so that every part matters."""
    with torch.no_grad():
        for parameter in network.hyper_network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return network


def test_the_size_is_that_of_the_paper() -> None:
    assert LiquidCell(num_units=64, num_steps=8, solver="euler").num_weights == 8899
    config = make_config("before", "full")
    network = LiquidRegistration(config.network)
    assert network.hyper_network[0].in_features == 512
    assert network.hyper_network[3].out_features == 8899


@pytest.mark.parametrize("solver", ["euler", "cfc"])
def test_a_batched_cell_is_one_cell_a_pair(solver: str) -> None:
    """Against a loop over pairs and steps that follows the equations."""
    cell = LiquidCell(num_units=5, num_steps=4, solver=solver)  # type: ignore[arg-type]
    weights = torch.randn(3, cell.num_weights, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = positions((2, 3, 4), weights)
    found = cell(weights, places)
    assert found.shape == (3, 3, 24)
    for pair, flat in enumerate(weights):
        parts = torch.split(flat, [25, 15, 5, 25, 15, 5, 15, 3])
        w, u, b, w_tau, u_tau, b_tau, w_out, b_out = (
            part.reshape(shape) for part, shape in zip(parts, cell.shapes, strict=True)
        )
        for place, answer in zip(places, found[pair].T, strict=True):
            h = torch.zeros(5, dtype=torch.float64)
            for _ in range(4):
                tau = 0.1 + 9.9 * torch.nn.functional.softplus(w_tau @ h + u_tau @ place + b_tau)
                drive = torch.sigmoid(w @ h + u @ place + b)
                if solver == "euler":
                    h = h + 0.25 * (-h / tau + drive)
                else:
                    h = drive * tau + (h - drive * tau) * torch.exp(-0.25 / tau)
            torch.testing.assert_close(answer, torch.tanh(w_out @ h + b_out))


def test_both_solvers_have_one_limit_and_the_closed_form_is_nearer_at_few_steps() -> None:
    weights = torch.randn(2, LiquidCell(8, 1, "euler").num_weights, generator=torch.Generator().manual_seed(0)).double()
    places = positions((3, 3, 3), weights)
    limit = LiquidCell(8, 2000, "euler")(weights, places)
    closed = [LiquidCell(8, steps, "cfc")(weights, places) for steps in (8, 2000)]
    torch.testing.assert_close(closed[1], limit, atol=1e-3, rtol=0.0)
    assert float((closed[0] - limit).abs().max()) < 0.1


def test_positions_are_the_voxels_centres() -> None:
    places = positions((2, 3, 4), torch.zeros(()))
    assert places[0].tolist() == [-1.0, -1.0, -1.0]
    assert places[-1].tolist() == [1.0, 1.0, 1.0]
    assert places[1].tolist() == pytest.approx([-1.0, -1.0, -1.0 / 3.0])


def test_gradients_reach_encoder_and_hyper_network_unless_detached() -> None:
    for settings, reached in (((), True), (("network.weights=detached",), False)):
        network = awake(make_network("before", *settings))
        network(*volumes()).warped.square().mean().backward()
        parts = {"encoder": network.encoder, "hyper_network": network.hyper_network}
        for name, part in parts.items():
            norms = [float(p.grad.norm()) if p.grad is not None else 0.0 for p in part.parameters()]
            assert (max(norms) > 0.0) == reached, f"{name} {settings}"
            if reached:  # biases before a BatchNorm alone have none
                assert sum(norm > 1e-12 for norm in norms) >= len(norms) / 2
    assert network.cell_weights is not None
    assert network.cell_weights.grad is not None
    assert float(network.cell_weights.grad.norm()) > 0.0, "the write-up's small gradient norm was that of these"


def test_the_detached_cell_forgets_its_step_and_runs_every_pair_with_the_first_ones_weights() -> None:
    network = awake(make_network("before", "network.weights=detached", "network.norm=layer"))
    fixed, moving = volumes()
    before = network(fixed, moving)
    torch.testing.assert_close(before.velocity[0], before.velocity[1])
    assert network.cell_weights is not None
    with torch.no_grad():
        network.cell_weights.add_(1.0)
    torch.testing.assert_close(network(fixed, moving).velocity, before.velocity)
    functional = awake(make_network("before", "network.norm=layer"))(fixed, moving)
    assert not torch.allclose(functional.velocity[0], functional.velocity[1])
    torch.testing.assert_close(functional.velocity[0], before.velocity[0])


def test_each_pair_is_registered_by_its_own_code() -> None:
    """With a norm that does not mix pairs a batch is its pairs one by one."""
    network = awake(make_network("before", "network.norm=layer"))
    fixed, moving = volumes(3)
    together = network(fixed, moving)
    alone = [network(fixed[n : n + 1], moving[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(together.displacement, torch.cat([found.displacement for found in alone]))
    torch.testing.assert_close(together.warped, torch.cat([found.warped for found in alone]))


def test_velocity_scale_is_the_largest_velocity() -> None:
    for scale in (1.0, 10.0):
        network = awake(make_network("before", f"network.velocity_scale={scale}"))
        velocity = network(*volumes()).velocity.detach().abs()
        assert 0.1 * scale < float(velocity.max()) <= scale


def test_the_start_is_near_no_registration() -> None:
    found = make_network()(*volumes())
    assert float(found.displacement.detach().abs().max()) < 0.3


def test_velocity_and_flow_are_fp32_inside_autocast() -> None:
    network = make_network()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(*volumes())
    assert {tensor.dtype for tensor in (found.velocity, found.displacement, found.warped)} == {torch.float32}


def test_gradients_of_the_cell() -> None:
    cell = LiquidCell(num_units=3, num_steps=2, solver="euler")
    weights = torch.randn(2, cell.num_weights, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = positions((2, 2, 2), weights)
    assert torch.autograd.gradcheck(lambda values: cell(values, places), (weights.requires_grad_(),))
