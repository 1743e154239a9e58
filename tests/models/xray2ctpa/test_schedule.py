"""The noise schedule: its published form in float64, what follows from a prediction, and what is amplified."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch

from hpcstab.models.xray2ctpa.schedule import NoiseSchedule, cosine_alpha_bars, with_zero_terminal_snr

ALL = torch.arange(1000)


def schedule(prediction: Literal["eps", "v"] = "v", *, zero: bool = True) -> NoiseSchedule:
    made = NoiseSchedule(1000, prediction, zero_terminal_snr=zero)
    made.signal, made.noise = made.signal.double(), made.noise.double()
    return made


def by_hand() -> np.ndarray:
    """abar of the cosine schedule in NumPy, beta by beta."""
    level = [math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(1001)]
    product, bars = 1.0, []
    for before, after in pairwise(level):
        product *= 1 - min(1 - after / before, 0.9999)
        bars.append(product)
    return np.array(bars)


def test_cosine_in_float64() -> None:
    np.testing.assert_allclose(cosine_alpha_bars(1000).numpy(), by_hand(), rtol=1e-12)


def test_zero_terminal_snr_keeps_the_first_step_and_ends_at_zero() -> None:
    bars = cosine_alpha_bars(1000)
    stretched = with_zero_terminal_snr(bars)
    assert stretched[-1] == 0.0
    assert float(stretched[0]) == pytest.approx(float(bars[0]), rel=1e-12)
    assert bool((stretched[1:] < stretched[:-1]).all())


def test_the_measured_amplification() -> None:
    """1 / sqrt(abar): 6.4e4 at t = 999, 642 at 998, 71 at 990, 6.5 at 900."""
    amplification = schedule("eps", zero=False).amplification(torch.tensor([999, 998, 990, 900]))
    assert amplification.tolist() == pytest.approx([6.4e4, 642, 71, 6.5], rel=0.02)


@pytest.mark.parametrize("zero", [False, True])
def test_v_amplifies_nothing(zero: bool) -> None:
    assert float(schedule("v", zero=zero).amplification(ALL).max()) <= 1.0


@pytest.mark.parametrize(("prediction", "zero"), [("eps", False), ("v", False), ("v", True)])
def test_the_target_leads_back_to_latents_and_noise(prediction: Literal["eps", "v"], zero: bool) -> None:
    """At all t, in float64; under v also where nothing of the signal is left."""
    made = schedule(prediction, zero=zero)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1000, 2, 2, 1, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    noisy, target = made.noisy(latents, noise, ALL), made.target(latents, noise, ALL)
    tolerance = 1e-6  # tables are rounded to fp32
    error = (made.latents(noisy, target, ALL) - latents).abs().flatten(1).amax(1)
    assert float((error / made.amplification(ALL).clamp(min=1.0)).max()) < tolerance
    torch.testing.assert_close(made.noise_of(noisy, target, ALL), noise, rtol=0, atol=1e-6)


def test_min_snr_weights_are_the_published_ones() -> None:
    made = schedule("v", zero=False)
    snr = made.signal.square() / made.noise.square()
    expected = snr.clamp(max=5.0) / (snr + 1)
    torch.testing.assert_close(made.min_snr_weight(ALL), expected, rtol=1e-5, atol=1e-9)
    of_eps = schedule("eps", zero=False)
    torch.testing.assert_close(of_eps.min_snr_weight(ALL), snr.clamp(max=5.0) / snr, rtol=1e-5, atol=1e-9)


def test_min_snr_weight_of_zero_snr_is_zero() -> None:
    assert float(schedule("v").min_snr_weight(torch.tensor([999]))) == 0.0


def test_the_gate_by_amplification_also_closes_where_nothing_is_left() -> None:
    made = schedule("v")
    allowed = made.is_amplified_less(ALL, 10.0)
    assert not bool(allowed[-1])
    roots = made.signal
    assert torch.equal(allowed, roots > 0.1)
    assert 0.9 < float(allowed.double().mean()) < 0.95


def test_differentiable_in_float64() -> None:
    made = schedule("v")
    t = torch.tensor([0, 500, 999])
    noisy, predicted = (torch.randn(3, 2, 1, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, v: made.latents(x, v, t), (noisy, predicted))
    assert torch.autograd.gradcheck(lambda x, v: made.noise_of(x, v, t), (noisy, predicted))


@pytest.mark.slow
def test_monai_has_the_same_schedule() -> None:
    """Its cosine differs in when s is added, so that only betas that are given to both can be compared."""
    from monai.networks.schedulers import DDIMScheduler

    for prediction, name in (("eps", "epsilon"), ("v", "v_prediction")):
        ours = schedule(prediction, zero=False)  # type: ignore[arg-type]
        theirs = DDIMScheduler(num_train_timesteps=1000, schedule="cosine", prediction_type=name, clip_sample=False)
        theirs.alphas_cumprod = ours.signal.square()
        t = torch.tensor([3, 400, 900])
        latents, noise = (torch.randn(3, 2, 4, 4, 4, dtype=torch.float64) for _ in range(2))
        noisy = ours.noisy(latents, noise, t)
        torch.testing.assert_close(theirs.add_noise(latents, noise, t), noisy, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            theirs.get_velocity(latents, noise, t),
            schedule("v", zero=False).target(latents, noise, t),
            rtol=1e-4,
            atol=1e-5,
        )
        theirs.set_timesteps(1000)
        predicted = torch.randn(1, 2, 4, 4, 4, dtype=torch.float64)
        _, rebuilt = theirs.step(predicted, 400, noisy[1:2])
        torch.testing.assert_close(ours.latents(noisy[1:2], predicted, t[1:2]), rebuilt, rtol=1e-4, atol=1e-5)
