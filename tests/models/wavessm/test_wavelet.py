"""The Haar transform: perfect reconstruction, energy, and bands of images whose bands are known."""

from __future__ import annotations

import torch

from hpcstab.models.wavessm.wavelet import haar_transform, inverse_haar_transform


def test_perfect_reconstruction_and_equal_energy() -> None:
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bands = haar_transform(images)
    assert {band.shape for band in bands} == {(2, 3, 4, 6)}
    torch.testing.assert_close(inverse_haar_transform(bands), images, rtol=0, atol=1e-15)
    torch.testing.assert_close(sum(band.square().sum() for band in bands), images.square().sum())


def test_each_band_sees_its_own_pattern() -> None:
    flat = torch.ones(1, 1, 4, 4)
    stripes_along_x = flat * torch.tensor([1.0, -1.0, 1.0, -1.0])
    patterns = [
        flat,
        stripes_along_x,
        stripes_along_x.transpose(2, 3),
        stripes_along_x * stripes_along_x[..., :1, :].mT,
    ]
    for own, pattern in enumerate(patterns):
        for index, band in enumerate(haar_transform(pattern)):
            assert torch.equal(band, torch.full((1, 1, 2, 2), 2.0 if index == own else 0.0))


def test_gradients() -> None:
    images = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(haar_transform(x)), (images,))
    assert torch.autograd.gradcheck(lambda x: inverse_haar_transform(haar_transform(x)), (images,))
