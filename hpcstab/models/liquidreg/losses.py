"""The regularising terms of LiquidReg; each a scalar. LNCC has a file of its own.

Displacements and velocities are (B, 3, D, H, W) in voxels, Jacobian determinants (B, D-2, H-2, W-2).
"""

from __future__ import annotations

import torch
from torch import Tensor

_TAIL = 0.95  # quantile of the magnitudes above which a weight counts as extreme
_LARGEST_WEIGHT = 0.1


def volume_change(determinants: Tensor) -> Tensor:
    """Mean (|J| - 1)^2, the write-up's: it punishes growth that an anatomy may need as much as folding."""
    return (determinants - 1.0).square().mean()


def folding(determinants: Tensor) -> Tensor:
    """Mean max(-|J|, 0): zero wherever the map is one to one."""
    return (-determinants).relu().mean()


def mean_square(velocity: Tensor) -> Tensor:
    """Mean v^2 in voxels^2, the write-up's smoothness: it is about size and not about smoothness."""
    return velocity.square().mean()


def diffusion(displacement: Tensor) -> Tensor:
    """Mean squared difference of neighbours along each axis, the sum over axes of displacement and of space.

    Source: the `l2` regulariser of VoxelMorph (Balakrishnan et al., IEEE TMI 2019, arXiv 1809.05231).
    """
    differences = [displacement.diff(dim=axis).square().mean() for axis in (2, 3, 4)]
    return 3.0 * torch.stack(differences).sum()  # the mean is over the three components, too


def liquid_stability(weights: Tensor) -> Tensor:
    """The write-up's term on the cell's weights (B, P): mean p^2, the excess over the 95 % quantile, a tenth of max|p|.

    The quantile counts as a constant. It is of the weights that the cell ran with, in whatever way it got them.
    """
    magnitudes = weights.abs()
    tail = magnitudes.detach().flatten().quantile(_TAIL)
    return weights.square().mean() + (magnitudes - tail).relu().mean() + _LARGEST_WEIGHT * magnitudes.max()
