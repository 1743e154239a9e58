"""The Fourier refinement: shapes, reach, and whether its spectrum can leave the range of fp16."""

from __future__ import annotations

import pytest
import torch

from hpcstab.models.wavessm.fourier import (
    MultiScaleWaveFourier,
    SpectralTransform,
    WaveFourierBlock,
    WaveFourierConvolution,
)

FP16_MAX = torch.finfo(torch.float16).max


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.99])
def test_shapes_for_any_split_of_the_channels(ratio: float) -> None:
    features = torch.randn(2, 4, 6, 10)
    convolution = WaveFourierConvolution(4, ratio)
    assert convolution(features).shape == features.shape
    assert 1 <= convolution.num_local <= 3
    assert MultiScaleWaveFourier(4, [ratio, 0.5])(features).shape == features.shape


def test_one_pixel_reaches_all_others_through_the_spectrum() -> None:
    torch.manual_seed(0)
    transform = SpectralTransform(1).eval()
    features = torch.rand(1, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(transform(features)[0, 0, 0, 0], features)
    assert (gradient != 0).all()


def test_identity_filters_give_the_positive_half_of_the_spectrum_back() -> None:
    """By hand: with unit weights and BatchNorm switched off, what remains is the ReLU of real and imaginary parts."""
    transform = SpectralTransform(1).eval()
    convolution, norm = transform.conv[0], transform.conv[1]
    norm.eps = 0.0
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(2)[:, :, None, None])
    features = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft2(features.double(), norm="ortho")
    expected = torch.fft.irfft2(
        torch.complex(spectrum.real.relu(), spectrum.imag.relu()), s=features.shape[2:], norm="ortho"
    )
    torch.testing.assert_close(transform(features).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_instance_norm_leaves_the_spectrum_no_dc_and_parseval_bounds_the_rest() -> None:
    """The write-up: huge DC components overflow fp16. Here the mean is 0, and sum of squares <= number of pixels."""
    torch.manual_seed(0)
    block = WaveFourierBlock(2, 0.5)
    images = 1000.0 + torch.linspace(0.0, 200.0, 256).expand(1, 2, 256, 256)
    block(images)
    largest = float(block.ffc.global_conv.spectrum_absmax)
    assert 100.0 < largest <= 256.0
    spectrum = torch.fft.rfft2(block.norm(images), norm="ortho")
    assert float(spectrum[..., 0, 0].abs().max()) < 1.0


def test_without_norm_and_without_orthonormal_scaling_the_dc_does_overflow() -> None:
    """What the write-up describes is real, in another network than its own."""
    images = torch.linspace(0.0, 200.0, 256).expand(1, 1, 256, 256)
    dc = torch.fft.rfft2(images, norm="backward")[..., 0, 0].abs()
    assert float(dc) == pytest.approx(100.0 * 256 * 256, rel=1e-3)
    assert float(dc) > FP16_MAX
    assert torch.fft.rfft2(images, norm="ortho").abs().max() < FP16_MAX
