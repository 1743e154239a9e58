"""Local normalised cross-correlation in three forms; where window variances come from decides which stays finite.

B = pairs, (D, H, W) = voxels. Each form takes two volumes (B, 1, D, H, W) and the edge of a cubic window in voxels, and
gives a value a voxel, (B, 1, D, H, W). A correlation lies in [-1, 1]; what does not is an error of arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hpcstab.stability.numerics import fp32_island

_EPS = 1e-8  # of the write-up
_CLAMP = 10.0  # of the write-up
_CENTRED_EPS = 1e-5  # variance product of the standardised volumes under which a window counts as flat
_ROUNDING = 1e-3  # more than what fp32 can add to a correlation of 1


class Guarded(NamedTuple):
    """``values``, and where something impossible was hidden: a negative product of variances, |LNCC| > 10, NaN."""

    values: Tensor
    hidden: Tensor


def raw_lncc(fixed: Tensor, warped: Tensor, window: int) -> Tensor:
    """The first form of the write-up's code: variances as E[x^2] - E[x]^2 of the volumes as they come.

    Where the mean of a window is large beside its spread, the difference is rounding error: of either sign, so that the
    root of the product is NaN, or tiny, so that the quotient is anything.
    """
    covariance, product = _moments(fixed, warped, window)
    return covariance / torch.sqrt(product + _EPS)


def guarded_lncc(fixed: Tensor, warped: Tensor, window: int) -> Guarded:
    """The write-up's repair of the same moments: clamps under the root and of the result, NaN becomes 0."""
    covariance, product = _moments(fixed, warped, window)
    root = product.clamp(min=_EPS * _EPS).sqrt().clamp(min=_EPS)
    quotient = covariance / root
    values = quotient.clamp(-_CLAMP, _CLAMP).nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0)
    impossible = (product < 0.0) | (quotient.abs() > _CLAMP) | ~quotient.isfinite()
    return Guarded(values, impossible)


@fp32_island
def centred_lncc(fixed: Tensor, warped: Tensor, window: int) -> Tensor:
    """|LNCC| <= 1 for any finite volumes, in at least fp32: both are standardised before anything is squared.

    A window that is flat beside its volume counts as uncorrelated; so does a volume that is flat as a whole.
    """
    covariance, fixed_variance, warped_variance = _window_means(_standardised(fixed), _standardised(warped), window)
    product = fixed_variance.clamp(min=0.0) * warped_variance.clamp(min=0.0)
    correlation: Tensor = covariance / torch.sqrt(product * (1.0 + _ROUNDING) + _CENTRED_EPS)
    return correlation


def _standardised(volumes: Tensor) -> Tensor:
    """Mean 0 and spread 1 of each volume; the mean is taken off twice, since the first time it is itself rounded."""
    for _ in range(2):
        volumes = volumes - volumes.mean(dim=(1, 2, 3, 4), keepdim=True)
    variance = volumes.square().mean(dim=(1, 2, 3, 4), keepdim=True)
    standardised: Tensor = volumes / (variance + torch.finfo(volumes.dtype).tiny ** 0.5).sqrt()
    return standardised


def _moments(fixed: Tensor, warped: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Covariance and the product of the variances in the window around each voxel."""
    covariance, fixed_variance, warped_variance = _window_means(fixed, warped, window)
    return covariance, fixed_variance * warped_variance


def _window_means(fixed: Tensor, warped: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """E[fw] - E[f]E[w], E[ff] - E[f]^2, E[ww] - E[w]^2 over windows; volumes are reflected at their borders."""
    products = torch.cat([fixed, warped, fixed * warped, fixed.square(), warped.square()], dim=1)
    f, w, fw, ff, ww = _mean_filter(products, window).chunk(5, dim=1)
    return fw - f * w, ff - f.square(), ww - w.square()


def _mean_filter(volumes: Tensor, window: int) -> Tensor:
    """Means over cubes, one axis after the other."""
    volumes = functional.pad(volumes, [window // 2] * 6, mode="reflect")
    for size in ((window, 1, 1), (1, window, 1), (1, 1, window)):
        volumes = functional.avg_pool3d(volumes, size, stride=1)
    return volumes
