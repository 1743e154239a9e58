"""The loss terms of vae2d against references in float64, and their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from hpcstab.models.vae2d.losses import (
    effective_beta,
    gaussian_nll,
    kl_per_latent,
    l1_ssim,
    reduced,
    spectral_l1,
    squared_error,
    with_free_bits,
)
from hpcstab.quality import box_window, ssim


def images(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_l1_ssim_is_the_mean_over_sizes() -> None:
    first, second = images(0, 2, 1, 44, 44), images(1, 2, 1, 44, 44)
    expected = 0.0
    for size in (44, 22, 11):
        a = first.reshape(2, size, 44 // size, size, 44 // size).mean((2, 4))
        b = second.reshape(2, size, 44 // size, size, 44 // size).mean((2, 4))
        similarity = ssim(a[:, None], b[:, None], box_window(a.device)).mean()
        expected += float(0.5 * (a - b).abs().mean() + 0.5 * (1 - similarity)) / 3
    assert float(l1_ssim(first, second, 3)) == pytest.approx(expected, rel=1e-9)


def test_kl_is_that_of_torch_distributions() -> None:
    mean, logvar = images(0, 2, 3, 2, 2) * 4 - 2, images(1, 2, 3, 2, 2) * 6 - 3
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_per_latent(mean, logvar), expected)


def test_free_bits_leave_latents_below_the_floor_without_a_gradient() -> None:
    """The logged value is the floor itself, so that a collapse cannot be seen in it."""
    mean = torch.full((2, 3, 1, 1), 0.1, requires_grad=True)
    floored = with_free_bits(kl_per_latent(mean, torch.zeros(2, 3, 1, 1)), 0.25)
    floored.backward()
    assert float(floored.detach()) == 0.25
    assert float(mean.grad.abs().sum()) == 0.0  # type: ignore[union-attr]
    raw = with_free_bits(kl_per_latent(mean, torch.zeros(2, 3, 1, 1)), None)
    assert float(raw.detach()) == pytest.approx(0.005)


def test_gaussian_is_the_best_likelihood_of_any_variance() -> None:
    """The term is the mean of -log N(image; reconstruction, s) at the s that makes it smallest."""
    rebuilt, target = images(0, 2, 1, 8, 8), images(1, 2, 1, 8, 8)
    rms = float((rebuilt - target).square().mean().sqrt())
    by_scale = {scale: -float(Normal(rebuilt, scale * rms).log_prob(target).mean()) for scale in (0.8, 1.0, 1.25)}
    assert min(by_scale, key=by_scale.__getitem__) == 1.0
    assert float(gaussian_nll(rebuilt, target)) == pytest.approx(by_scale[1.0], abs=1e-4)


def test_gaussian_is_finite_for_a_perfect_reconstruction() -> None:
    image = images(0, 1, 1, 8, 8)
    lowest = gaussian_nll(image, image)
    assert float(lowest) == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 255**2 / 12))


def test_spectral_is_the_definition() -> None:
    first, second = images(0, 2, 1, 8, 8), images(1, 2, 1, 8, 8)
    spectra = np.fft.rfft2((first - second).numpy(), norm="ortho")
    assert float(spectral_l1(first, second)) == pytest.approx(np.abs(spectra).mean(), rel=1e-9)


@pytest.mark.parametrize(
    ("reduction", "weight", "num_pixels", "num_latents", "beta"),
    [
        ("mean", 1.0, 65_536, 1024, 64.0),  # round 1
        ("mean", 0.1, 65_536, 1024, 6.4),  # before round 5
        ("mean", 0.5, 65_536, 512, 64.0),  # the final one
        ("sum", 0.001, 65_536, 4096, 0.001),  # round 0
        ("per_pixel", 1.0, 65_536, 1024, 1.0),  # cured
        ("per_pixel", 1.0, 4096, 32, 1.0),
    ],
)
def test_beta_is_the_kl_weight_of_two_sums(
    reduction: str, weight: float, num_pixels: int, num_latents: int, beta: float
) -> None:
    """As computed, and as the ratio of what one nat and one unit of squared error of an image do to the loss."""
    assert effective_beta(weight, reduction, num_pixels, num_latents) == pytest.approx(beta)  # type: ignore[arg-type]
    one_error, one_nat = torch.tensor(1.0 / num_pixels), torch.tensor(1.0 / num_latents)
    zero = torch.tensor(0.0)
    by_error = reduced(one_error, zero, reduction, num_pixels, num_latents)[0]  # type: ignore[arg-type]
    by_nat = weight * reduced(zero, one_nat, reduction, num_pixels, num_latents)[1]  # type: ignore[arg-type]
    assert float(by_nat / by_error) == pytest.approx(beta, rel=1e-5)


def test_gradients_are_right() -> None:
    rebuilt = images(0, 1, 1, 12, 12).requires_grad_()
    target = images(1, 1, 1, 12, 12)
    for loss in (squared_error, gaussian_nll, spectral_l1, lambda a, b: l1_ssim(a, b, 1)):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, target), (rebuilt,))
    large, other = images(4, 1, 1, 44, 44).requires_grad_(), images(5, 1, 1, 44, 44)
    assert torch.autograd.gradcheck(lambda x: l1_ssim(x, other, 3), (large,), fast_mode=True)
    mean, logvar = (images(seed, 2, 2, 1, 1).requires_grad_() for seed in (2, 3))
    assert torch.autograd.gradcheck(lambda m, v: with_free_bits(kl_per_latent(m, v), 0.1), (mean, logvar))


def test_terms_are_computed_in_fp32_under_autocast() -> None:
    first, second = images(0, 1, 1, 16, 16).float(), images(1, 1, 1, 16, 16).float()
    expected = [float(loss(first, second)) for loss in (squared_error, gaussian_nll, spectral_l1)]
    expected.append(float(l1_ssim(first, second, 1)))
    with torch.autocast("cpu", torch.bfloat16):
        found = [float(loss(first, second)) for loss in (squared_error, gaussian_nll, spectral_l1)]
        found.append(float(l1_ssim(first, second, 1)))
    assert found == expected
    assert functional.mse_loss(first, second).dtype == torch.float32
