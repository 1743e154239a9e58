"""Displacements: warping, the exponential of a velocity by scaling and squaring, the Jacobian determinant.

B = pairs, C = channels, (D, H, W) = voxels. Displacements and velocities are (B, 3, D, H, W) in voxels, channel i along
voxel axis i, as in MONAI (``monai.networks.blocks.Warp``, ``DVF2DDF`` with ``padding_mode="border"``), with which tests
compare them. Ours since the write-up clamps the sampling grid, and since MONAI's keep a grid from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def voxel_grid(shape: Sequence[int], like: Tensor) -> Tensor:
    """Indices of all voxels, (3, D, H, W), in dtype and on the device of ``like``."""
    axes = [torch.arange(size, dtype=like.dtype, device=like.device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(
    volumes: Tensor, displacement: Tensor, grid_limit: float = 1.0, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """``volumes(x + displacement(x))``: (B, C, D, H, W) sampled trilinearly, beyond the border its nearest voxel.

    Args:
        grid_limit: sampling positions are clamped to +-this, where +-1 are the centres of the outermost voxels. 1
            changes nothing: the border is repeated all the same, and what lies beyond it has no gradient. The
            write-up's 0.999 moves samples of the border inwards.
    """
    shape = displacement.shape[2:]
    last = displacement.new_tensor([max(size - 1, 1) for size in shape])
    positions = (voxel_grid(shape, displacement) + displacement).movedim(1, -1) * (2.0 / last) - 1.0
    positions = positions.clamp(-grid_limit, grid_limit).flip(-1)  # grid_sample wants the last axis first
    sampled: Tensor = functional.grid_sample(
        volumes, positions.to(volumes.dtype), mode=mode, padding_mode="border", align_corners=True
    )
    return sampled


def exponential(velocity: Tensor, num_squarings: int, grid_limit: float = 1.0) -> Tensor:
    """Displacement u with id + u = exp(velocity), by scaling and squaring.

    Trustworthy where ``max |velocity| / 2 ** num_squarings`` is below half a voxel.
    Source: Arsigny et al., "A Log-Euclidean Framework for Statistics on Diffeomorphisms" (MICCAI 2006).
    """
    displacement: Tensor = velocity / 2**num_squarings
    for _ in range(num_squarings):
        displacement = warp(displacement, displacement, grid_limit) + displacement
    return displacement


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """det(I + grad u) by central differences at inner voxels, (B, D-2, H-2, W-2); at most 0 where space folds."""
    slopes = torch.gradient(displacement, dim=(2, 3, 4))
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (slope[..., 1:-1, 1:-1, 1:-1].unbind(1) for slope in slopes)
    xx, yy, zz = xx + 1.0, yy + 1.0, zz + 1.0
    determinants: Tensor = xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)
    return determinants
