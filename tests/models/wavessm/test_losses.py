"""The loss terms against float64 twins written out plainly, their gradients, and answers known by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcstab.models.wavessm.losses import (
    FrozenFeatures,
    l1,
    perceptual_l1,
    sobel_l1,
    structural_dissimilarity,
    wavelet_l1,
)
from tests.test_quality import plain_ssim

Loss = Callable[[Tensor, Tensor], Tensor]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_l1(restored: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean(np.abs(restored - truth)))


def plain_dissimilarity(restored: np.ndarray, truth: np.ndarray) -> float:
    return 1.0 - float(np.mean(plain_ssim(restored, truth)))


def plain_sobel(restored: np.ndarray, truth: np.ndarray) -> float:
    error = restored - truth
    smooth = np.array([1.0, 2.0, 1.0]) / 4
    total = []
    for image in error.reshape(-1, *error.shape[2:]):
        for y in range(1, image.shape[0] - 1):
            for x in range(1, image.shape[1] - 1):
                patch = image[y - 1 : y + 2, x - 1 : x + 2]
                total.append(abs(smooth @ (patch[:, 2] - patch[:, 0]) / 2))
                total.append(abs((patch[2] - patch[0]) @ smooth / 2))
    return float(np.mean(total))


def plain_wavelet(restored: np.ndarray, truth: np.ndarray) -> float:
    error = restored - truth
    a, b = error[..., ::2, ::2], error[..., ::2, 1::2]
    c, d = error[..., 1::2, ::2], error[..., 1::2, 1::2]
    low = np.abs(a + b + c + d) / 2
    high = [np.abs(a - b + c - d) / 2, np.abs(a + b - c - d) / 2, np.abs(a - b - c + d) / 2]
    return float(np.mean(low) + 1.5 * np.mean(high))


def plain_perceptual(restored: np.ndarray, truth: np.ndarray) -> float:
    """Three layers of 3 x 3 filters over zeros around the image, from the second on at every second pixel; ReLU."""
    pair, distances = [restored, truth], []
    for index, layer in enumerate(FrozenFeatures().layers):
        step, weights = 1 if index == 0 else 2, layer.weight.double().numpy()
        padded = [np.pad(each, [(0, 0), (0, 0), (1, 1), (1, 1)]) for each in pair]
        patches = [np.lib.stride_tricks.sliding_window_view(each, (3, 3), (2, 3)) for each in padded]
        pair = [
            np.maximum(np.einsum("bchwij,ocij->bohw", each[:, :, ::step, ::step], weights), 0.0) for each in patches
        ]
        distances.append(np.abs(pair[0] - pair[1]).mean())
    return float(np.mean(distances))


def perceptual(restored: Tensor, truth: Tensor) -> Tensor:
    return perceptual_l1(restored, truth, FrozenFeatures().to(restored.dtype))


@pytest.mark.parametrize(
    ("term", "plain"),
    [
        (l1, plain_l1),
        (structural_dissimilarity, plain_dissimilarity),
        (sobel_l1, plain_sobel),
        (wavelet_l1, plain_wavelet),
        (perceptual, plain_perceptual),
    ],
)
def test_equals_its_plain_twin_in_float64_and_nearly_in_fp32(
    term: Loss, plain: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    restored, truth = images(2, 3, 14, 16), images(2, 3, 14, 16, seed=1)
    expected = plain(restored.numpy(), truth.numpy())
    assert float(term(restored, truth)) == pytest.approx(expected, rel=1e-12)
    assert float(term(restored.float(), truth.float())) == pytest.approx(expected, rel=1e-4)
    assert float(term(truth, truth)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("term", [l1, structural_dissimilarity, sobel_l1, wavelet_l1])
def test_gradients(term: Loss) -> None:
    restored, truth = images(1, 1, 8, 8).requires_grad_(), images(1, 1, 8, 8, seed=1)
    assert torch.autograd.gradcheck(lambda x: term(x, truth), (restored,))


def test_gradient_of_the_perceptual_term_reaches_the_images_and_nothing_else() -> None:
    features = FrozenFeatures().double()
    restored, truth = images(1, 3, 8, 8).requires_grad_(), images(1, 3, 8, 8, seed=1)
    assert torch.autograd.gradcheck(lambda x: perceptual_l1(x, truth, features), (restored,))
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert float(perceptual_l1(truth, truth, features)) == 0.0


def test_frozen_features_are_the_same_everywhere() -> None:
    torch.manual_seed(0)
    first = FrozenFeatures()
    torch.manual_seed(1)
    second = FrozenFeatures()
    for ours, theirs in zip(first(torch.ones(1, 3, 8, 8)), second(torch.ones(1, 3, 8, 8)), strict=True):
        assert torch.equal(ours, theirs)
    assert [tuple(each.shape[1:]) for each in first(torch.ones(1, 3, 8, 8))] == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]


def test_an_opposed_patch_still_has_a_gradient() -> None:
    """A clamp to [0, 1] would give none where the correlation is negative."""
    truth = images(1, 1, 16, 16)
    restored = (1.0 - truth).requires_grad_()
    loss = structural_dissimilarity(restored, truth)
    assert float(loss.detach()) > 1.0
    (gradient,) = torch.autograd.grad(loss, restored)
    assert (gradient != 0).all()
