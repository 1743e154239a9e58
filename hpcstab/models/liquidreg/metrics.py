"""How well a pair is registered: overlap of labels, distance to the known answer, folding, smoothness, similarity.

B = pairs, (D, H, W) = voxels. All figures are one a pair, (B,), float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_MSE_PART = 1e-10  # of the squared range: 100 dB


def dice_by_label(first: Tensor, second: Tensor, num_labels: int) -> Tensor:
    """Dice coefficient of each label (B, num_labels), NaN for one that stands in neither volume; without background.

    first, second: labels (B, 1, D, H, W) in 0 ... num_labels, of any integer type.
    """
    first, second = (labels.flatten(1).long() for labels in (first, second))
    sizes = _count(first, num_labels) + _count(second, num_labels)
    shared = _count(torch.where(first == second, first, 0), num_labels)
    return torch.where(sizes > 0, 2.0 * shared / sizes.clamp(min=1.0), torch.nan)


def mean_dice(by_label: Tensor) -> Tensor:
    """Mean over the labels that stand in either volume; 0 where none does."""
    return by_label.nanmean(dim=1).nan_to_num(nan=0.0)


def endpoint_error(displacement: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """Mean distance in voxels of two displacements (B, 3, D, H, W) over the voxels of a mask (B, 1, D, H, W)."""
    return _masked_mean((displacement.double() - known.double()).norm(dim=1, keepdim=True), mask)


def folding_share(determinants: Tensor) -> Tensor:
    """Part of the voxels where the Jacobian determinant (B, D-2, H-2, W-2) is not above 0."""
    return (determinants <= 0.0).flatten(1).double().mean(dim=1)


def sd_log_jacobian(determinants: Tensor) -> Tensor:
    """Standard deviation of log(|J| + 3), the sum kept in [1e-9, 1e9]: how uneven a map is, over the whole volume.

    The offset of 3 is that of the evaluation of Learn2Reg 2021 (Hering et al., IEEE TMI 2022, arXiv 2112.04489).
    """
    return (determinants.double() + 3.0).clamp(1e-9, 1e9).log().flatten(1).std(dim=1, correction=0)


def reach(displacement: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """Largest displacement along any axis within a mask, over the largest that is needed there."""
    largest = [torch.where(mask, field.abs(), 0.0).flatten(1).amax(dim=1).double() for field in (displacement, known)]
    return largest[0] / largest[1].clamp(min=1e-6)


def psnr_db(warped: Tensor, fixed: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of volumes (B, 1, D, H, W), peak: the range of the fixed one; at most 100 dB."""
    squared = (warped.double() - fixed.double()).square().flatten(1).mean(dim=1)
    peak = (fixed.flatten(1).amax(dim=1) - fixed.flatten(1).amin(dim=1)).double()
    return -10.0 * (squared / peak.square()).clamp(min=_SMALLEST_MSE_PART).log10()


def _count(labels: Tensor, num_labels: int) -> Tensor:
    """Voxels of each label but 0: (B, N) -> (B, num_labels), float64."""
    counts = torch.zeros(len(labels), num_labels + 1, dtype=torch.float64, device=labels.device)
    return counts.scatter_add(1, labels, torch.ones_like(labels, dtype=torch.float64))[:, 1:]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    total = torch.where(mask, values, 0.0).flatten(1).sum(dim=1)
    return total / mask.flatten(1).sum(dim=1).clamp(min=1)
