"""How near a sampled volume is to the true one: PSNR and SSIM in three dimensions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

_WINDOW = 7  # voxels
_STABILIZERS = (0.01**2, 0.03**2)  # for a range of 1
_SMALLEST_MSE = 1e-10  # 100 dB


def psnr_db(volumes: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each volume (B, 1, D, H, W), peak 1, at most 100 dB; (B,), float64."""
    mse = (volumes - truth).double().square().flatten(1).mean(1)
    return -10.0 * mse.clamp(min=_SMALLEST_MSE).log10()


def ssim(volumes: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each volume (B, 1, D, H, W), box window of 7 voxels, range 1; (B,).

    Source: Wang et al. (2004), in three dimensions.
    """
    mean_volume, mean_truth = _mean(volumes), _mean(truth)
    covariance = _mean(volumes * truth) - mean_volume * mean_truth
    variances = _mean(volumes.square()) - mean_volume.square() + _mean(truth.square()) - mean_truth.square()
    for_means, for_variances = _STABILIZERS
    luminance = (2 * mean_volume * mean_truth + for_means) / (mean_volume.square() + mean_truth.square() + for_means)
    return (luminance * (2 * covariance + for_variances) / (variances + for_variances)).flatten(1).mean(1)


def _mean(values: Tensor) -> Tensor:
    """Local means of a cube of 7 voxels, axis by axis; smaller volumes have a smaller one."""
    for axis in range(3):
        kernel = [1, 1, 1]
        kernel[axis] = min(_WINDOW, values.shape[2 + axis])
        values = functional.avg_pool3d(values, kernel, stride=1)
    return values


def mean_absolute_error(volumes: Tensor, truth: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return (volumes - truth).abs().flatten(1).mean(1)
