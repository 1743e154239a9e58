"""Loss terms of vae2d: three reconstructions, the KL divergence with or without free bits, the spectral distance.

B = images in a batch, N = edge of an image in pixels, L = latent channels, n = edge of the latent grid. Images are in
[0, 1]. Everything here is computed in fp32 whatever the precision of the network: the variances of SSIM are differences
of near equal numbers, and an FFT sums over a whole image.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hpcstab.quality import box_window, ssim
from hpcstab.stability.numerics import fp32_island

Reduction = Literal["sum", "mean", "per_pixel"]

_ROUNDING_VARIANCE = (1.0 / 255.0) ** 2 / 12.0  # of a film of 8 bits: no decoder can be more certain than that


def effective_beta(kl_weight: float, reduction: Reduction, num_pixels: int, num_latents: int) -> float:
    """beta of ``reconstruction + beta * KL`` with both summed over an image, which is what beta-VAEs call beta.

    Means over pixels and over latents weigh the KL of a latent like the error of a pixel; there are many more pixels,
    so a weight of 1 is a beta of 64 for 65,536 pixels and 1,024 latents. beta = 1 is the ELBO where the reconstruction
    is a log-likelihood (``gaussian``). A squared error stands for a variance of 1/2 or, with a variance s^2, for
    2 s^2 beta.
    """
    return kl_weight * (num_pixels / num_latents if reduction == "mean" else 1.0)


def reduced(
    reconstruction: Tensor, kl: Tensor, reduction: Reduction, num_pixels: int, num_latents: int
) -> list[Tensor]:
    """A reconstruction per pixel and a KL per latent (scalars) as the two terms of the loss."""
    if reduction == "sum":
        return [reconstruction * num_pixels, kl * num_latents]
    return [reconstruction, kl if reduction == "mean" else kl * (num_latents / num_pixels)]


@fp32_island
def kl_per_latent(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of every latent (B, L, n, n), in nats, >= 0 up to rounding.

    exp overflows fp32 where logvar is above 88.7: inf here, and NaN in a loss that multiplies it by a weight of 0.
    Source: Kingma & Welling, "Auto-Encoding Variational Bayes" (ICLR 2014), appendix B.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)


def with_free_bits(kl: Tensor, free_bits: float | None) -> Tensor:
    """The mean over all latents of max(KL, free_bits), a scalar in nats a latent.

    Clamped latent by latent before the mean, as in the write-up: a latent below the floor has no gradient, and full
    collapse and healthy coding show the same number, the floor. Kingma et al., "Improving Variational Inference with
    Inverse Autoregressive Flow" (NeurIPS 2016), take the mean over the batch first.
    """
    return kl.mean() if free_bits is None else kl.clamp(min=free_bits).mean()


@fp32_island
def squared_error(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean over all pixels, a scalar >= 0. Both (B, 1, N, N)."""
    return functional.mse_loss(reconstruction, images)


@fp32_island
def gaussian_nll(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Negative log-likelihood of a pixel in nats, a scalar, under a normal whose variance is the best for this batch.

    The best variance is the mean squared error itself, so this is log(2 pi e MSE) / 2: the noise that the decoder
    assumes falls with its error, and the KL weighs against it as in the ELBO without a number to be tuned.
    Source: Rybkin et al., "Simple and Effective VAE Training with Calibrated Decoders" (ICML 2021), optimal sigma.

    Args:
        reconstruction: (B, 1, N, N).
        images: (B, 1, N, N).
    """
    variance = functional.mse_loss(reconstruction, images) + _ROUNDING_VARIANCE
    return 0.5 * (math.log(2.0 * math.pi * math.e) + variance.log())


@fp32_island
def l1_ssim(reconstruction: Tensor, images: Tensor, num_scales: int) -> Tensor:
    """0.5 * mean |difference| + 0.5 * (1 - SSIM), averaged over sizes N, N/2, N/4, ...; a scalar >= 0.

    SSIM with the write-up's box window; smaller sizes by averaging 2x2 pixels. Both (B, 1, N, N).
    """
    total = images.new_zeros(())
    for scale in range(num_scales):
        if scale:
            reconstruction, images = functional.avg_pool2d(reconstruction, 2), functional.avg_pool2d(images, 2)
        similarity = ssim(reconstruction, images, box_window(images.device)).mean()
        total = total + 0.5 * functional.l1_loss(reconstruction, images) + 0.5 * (1.0 - similarity)
    return total / num_scales


@fp32_island
def spectral_l1(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean magnitude of the difference of the two spectra (orthonormal rfft2), a scalar >= 0. Both (B, 1, N, N)."""
    difference = torch.fft.rfft2(reconstruction - images, norm="ortho")
    magnitude: Tensor = difference.abs().mean()
    return magnitude
