"""What is measured on held-out images, on latents and on samples of the prior: numbers for what eyes see.

Images (B, 1, N, N) in [0, 1]; latents (B, L, n, n). Scalars come back as tensors, so that nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01
_GRID_PERIODS = (2, 4)  # pixels; that of one layer of upsampling, and of two


def sharpness(images: Tensor) -> Tensor:
    """Mean magnitude of the gradient between neighbouring pixels (B,), grey value a pixel: lower is blurrier."""
    across = images[:, :, :-1, 1:] - images[:, :, :-1, :-1]
    down = images[:, :, 1:, :-1] - images[:, :, :-1, :-1]
    return (across.square() + down.square()).sqrt().mean(dim=(1, 2, 3))


def diversity(images: Tensor) -> Tensor:
    """Variance between images, mean over pixels, in squared grey values: 0 where all are alike.

    Of all images of the batch against their mean, whatever their order: neighbours in a series are near-copies. Over a
    batch of one it is 0: nothing differs.
    """
    return images.var(dim=0, correction=1 if len(images) > 1 else 0).mean()


def grid_powers(images: Tensor) -> tuple[Tensor, Tensor]:
    """(power at periods of 2 and 4 pixels, power at the frequencies beside them): means over images and axes.

    The first over the second is 1 without a grid, also in a blurred image, since the spectrum falls smoothly. A grid of
    upsampling stands at exactly these periods.
    """
    size = images.shape[-1]
    spectrum = torch.fft.fft2(images[:, 0].float(), norm="ortho").abs().square().mean(0)  # (N, N)
    on_grid, beside = [], []
    for profile in (spectrum.mean(0), spectrum.mean(1)):
        for period in _GRID_PERIODS:
            line = size // period
            on_grid.append(profile[line])
            beside.append(torch.stack([profile[line + offset] for offset in (-2, -1, 1, 2)]).mean())
    return torch.stack(on_grid).double().mean(), torch.stack(beside).double().mean()


def active_units(means: Tensor) -> Tensor:
    """Latents whose posterior mean varies between images with a variance above 0.01: how many carry something.

    Source: Burda et al., "Importance Weighted Autoencoders" (ICLR 2016), section 5.2; here over a batch. In one of a
    single image nothing varies.
    """
    variances = means.double().var(dim=0, correction=1 if len(means) > 1 else 0)
    return (variances > ACTIVE_VARIANCE).sum()


def aggregate_kl(means: Tensor, logvar: Tensor) -> Tensor:
    """How far the posteriors of all images together are from the prior, nats a latent.

    Each latent's mixture over the batch is taken as a normal of its mean and variance, whose KL from N(0, 1) this is.
    Where it is large, samples of the prior are latents that the decoder was never trained on: ghosting.
    """
    means, variances = means.double(), logvar.double().exp()
    mean, variance = means.mean(0), means.var(0, correction=0) + variances.mean(0)
    return 0.5 * (mean.square() + variance - 1.0 - variance.log()).mean()
