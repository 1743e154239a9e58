"""Loss terms against twins in float64, their gradients, and the write-up's guards one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcstab.models.xray2ctpa.discriminator import Discriminator, adversarial, hinge
from hpcstab.models.xray2ctpa.features import FrozenFeatures, ImageEncoder
from hpcstab.models.xray2ctpa.losses import (
    as_image_latents,
    clamped,
    distances,
    only_where,
    perceptual_distances,
    replace_nonfinite,
    slices,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "order"), [("l1", 1), ("l2", 2)])
def test_distances_are_means_of_each_sample(kind: str, order: int) -> None:
    predicted, target = drawn(3, 2, 2, 2, 2), drawn(3, 2, 2, 2, 2, seed=1)
    by_hand = (np.abs(predicted.numpy() - target.numpy()) ** order).reshape(3, -1).mean(1)
    np.testing.assert_allclose(distances(predicted, target, kind).numpy(), by_hand, rtol=1e-12)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(
        lambda x: distances(x, target, kind),  # type: ignore[arg-type]
        predicted.clone().requires_grad_(),
    )


def test_perceptual_distance_by_hand_and_its_gradient() -> None:
    features = FrozenFeatures().double()
    first, second = drawn(2, 3, 8, 8), drawn(2, 3, 8, 8, seed=1)
    expected = np.zeros(2)
    for ours, theirs in zip(features(first), features(second), strict=True):
        expected += np.sqrt(((ours - theirs).numpy() ** 2).reshape(2, -1).mean(1)) / 3
    np.testing.assert_allclose(perceptual_distances(first, second, features).numpy(), expected, rtol=1e-9)
    small = drawn(1, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: perceptual_distances(x, second[:1, :, :4, :4], features), small)


def test_equal_images_have_no_distance_and_a_finite_gradient() -> None:
    images = drawn(1, 3, 8, 8).requires_grad_()
    perceptual_distances(images, images.detach(), FrozenFeatures().double()).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().max()) == 0.0


def test_an_overflow_of_the_features_shows_in_loss_and_gradient() -> None:
    """Seen with a mean absolute difference, whose gradient of a NaN is 0: the weights stay, and only the loss tells."""
    images = (1e5 * drawn(1, 3, 8, 8)).float().requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = perceptual_distances(images, torch.zeros_like(images), FrozenFeatures()).sum()
    loss.backward()
    assert not math.isfinite(float(loss.detach()))
    assert images.grad is not None
    assert not bool(images.grad.isfinite().all())


def test_latents_for_the_image_network_are_blown_up_61_8_times() -> None:
    ends = as_image_latents(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([-12.91 / 0.18215, 9.60 / 0.18215])
    assert float(ends[1] - ends[0]) / 2 == pytest.approx(61.8, abs=0.05)


def test_slices_are_of_each_sample_its_own() -> None:
    volumes = drawn(3, 5, 4, 4, 4)
    found = slices(volumes, torch.tensor([0, 3, 1]))
    assert torch.equal(found[1], volumes[1, :3, :, :, 3])
    assert torch.equal(found[2], volumes[2, :3, :, :, 1])
    grey = slices(volumes[:, :1], torch.tensor([0, 3, 1]))
    assert torch.equal(grey[1, 2], volumes[1, 0, :, :, 3])


def test_only_where_stops_values_and_gradients() -> None:
    values = torch.tensor([[1.0], [math.inf]], requires_grad=True)
    chosen = only_where(torch.tensor([True, False]), values, torch.zeros(2, 1))
    chosen.sum().backward()
    assert chosen.tolist() == [[1.0], [0.0]]
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0], [0.0]]


def test_guards_count_what_they_change() -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 12.0, -3.0])
    replaced, num_replaced = replace_nonfinite(values)
    assert (replaced.tolist(), int(num_replaced)) == ([0.0, 1.0, -1.0, 12.0, -3.0], 3)
    cut, num_cut = clamped(replaced, 10.0)
    assert (cut.tolist(), int(num_cut)) == ([0.0, 1.0, -1.0, 10.0, -3.0], 1)


def test_each_side_pays_alone() -> None:
    """The network's term gives the discriminator no gradient, the discriminator's gives the network none."""
    discriminator = Discriminator(4).double()
    true, rebuilt = drawn(2, 4, 4, 4, 4), drawn(2, 4, 4, 4, 4, seed=1).requires_grad_()
    adversarial(discriminator, rebuilt).backward()
    assert rebuilt.grad is not None
    assert float(rebuilt.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    rebuilt.grad = None
    hinge(discriminator, true, rebuilt).backward()
    assert rebuilt.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_adversarial_terms_by_hand_and_their_gradients() -> None:
    discriminator = Discriminator(3).double()
    true, rebuilt = drawn(1, 3, 4, 4, 4), drawn(1, 3, 4, 4, 4, seed=1)
    on_true, on_rebuilt = (discriminator(each).detach().numpy() for each in (true, rebuilt))
    expected = 0.5 * (np.maximum(0, 1 - on_true).mean() + np.maximum(0, 1 + on_rebuilt).mean())
    assert float(hinge(discriminator, true, rebuilt).detach()) == pytest.approx(expected, rel=1e-12)
    assert float(adversarial(discriminator, rebuilt).detach()) == pytest.approx(-on_rebuilt.mean(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: adversarial(discriminator, x), rebuilt.clone().requires_grad_())


def test_the_code_of_a_film_has_length_one_and_tells_films_apart() -> None:
    films = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    codes = ImageEncoder(8)(films)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2))
    assert float((codes[0] - codes[1]).norm()) > 0.05
    assert torch.equal(codes, ImageEncoder(8)(films)), "frozen, of one draw"
