"""Warps, flows and Jacobian determinants against MONAI and against what is known by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from hpcstab.models.liquidreg.warping import exponential, jacobian_determinant, voxel_grid, warp

SHAPE = (9, 10, 11)


def smooth_velocity(largest: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(1, 3, 9, 10, 11): one wave along each axis, voxels."""
    grid = voxel_grid(SHAPE, torch.zeros((), dtype=dtype))
    waves = [torch.sin(2.0 * grid[(axis + 1) % 3] / SHAPE[axis]) for axis in range(3)]
    return largest * torch.stack(waves)[None]


def monai_blocks() -> tuple[type, type]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.blocks import DVF2DDF, Warp
    return Warp, DVF2DDF


@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")
def test_warp_and_exponential_are_those_of_monai() -> None:
    reference_warp, reference_flow = monai_blocks()
    torch.manual_seed(0)
    volumes = torch.rand(2, 3, *SHAPE, dtype=torch.float64)
    displacement = 4.0 * torch.randn(2, 3, *SHAPE, dtype=torch.float64)  # many samples beyond the border
    torch.testing.assert_close(warp(volumes, displacement), reference_warp()(volumes, displacement))
    nearest = reference_warp(mode="nearest")(volumes, displacement)
    torch.testing.assert_close(warp(volumes, displacement, mode="nearest"), nearest)
    velocity = smooth_velocity(3.0)
    flow = reference_flow(num_steps=6, padding_mode="border")(velocity)
    torch.testing.assert_close(exponential(velocity, 6), flow)


def test_a_shift_by_whole_voxels_takes_the_neighbour() -> None:
    volume = torch.rand(1, 1, *SHAPE)
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[:, 1] = 2.0
    torch.testing.assert_close(warp(volume, displacement)[..., :-2, :], volume[..., 2:, :])
    torch.testing.assert_close(exponential(displacement, 5), displacement, msg="a constant velocity is its own flow")


def test_the_flow_of_the_opposite_velocity_is_the_inverse() -> None:
    velocity = smooth_velocity(1.0)
    there, back = exponential(velocity, 8), exponential(-velocity, 8)
    home = there + warp(back, there)
    inner = (..., slice(3, -3), slice(3, -3), slice(3, -3))
    assert float(home[inner].abs().max()) < 0.02
    assert float(there[inner].abs().max()) > 0.5


def test_squarings_beyond_half_a_voxel_a_step_change_little() -> None:
    """From 2.5 voxels three squarings start at 0.31 of a voxel; without any the flow is off by more than 0.5."""
    velocity = smooth_velocity(2.5)
    best = exponential(velocity, 12)
    errors = [float((exponential(velocity, num) - best).abs().max()) for num in (0, 3, 6)]
    assert errors[0] > 0.5
    assert errors[1] < 0.2
    assert errors[2] < 0.02


def test_determinant_of_a_linear_map_and_of_a_fold() -> None:
    grid = voxel_grid(SHAPE, torch.zeros((), dtype=torch.float64))
    matrix = torch.tensor([[1.2, 0.1, 0.0], [-0.3, 0.9, 0.2], [0.0, 0.4, 1.1]], dtype=torch.float64)
    displacement = torch.einsum("ij,jdhw->idhw", matrix - torch.eye(3), grid)[None]
    determinants = jacobian_determinant(displacement)
    assert determinants.shape == (1, 7, 8, 9)
    torch.testing.assert_close(determinants, torch.linalg.det(matrix).expand_as(determinants))
    mirrored = torch.stack([-2.0 * grid[0], *torch.zeros(2, *SHAPE)])[None]
    assert float(jacobian_determinant(mirrored).max()) == pytest.approx(-1.0)


def test_the_write_ups_clamp_moves_the_border_and_nothing_else() -> None:
    """0.999 of the way from the middle to the border is 0.005 voxels inside of it, for an edge of 11."""
    ramp = voxel_grid(SHAPE, torch.zeros((), dtype=torch.float64))[None, 2:]
    still = torch.zeros(1, 3, *SHAPE, dtype=torch.float64)
    moved = warp(ramp, still, grid_limit=0.999) - ramp
    torch.testing.assert_close(moved[..., 1:-1], torch.zeros_like(moved[..., 1:-1]))
    torch.testing.assert_close(moved[..., 0], torch.full_like(moved[..., 0], 0.005))


def test_gradients_of_warp_and_flow() -> None:
    torch.manual_seed(0)
    volume = torch.rand(1, 1, 4, 4, 4, dtype=torch.float64)
    displacement = (0.3 * torch.rand(1, 3, 4, 4, 4, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda field: warp(volume, exponential(field, 2)), (displacement,), atol=1e-4)
    assert torch.autograd.gradcheck(jacobian_determinant, (displacement,))
