"""The three forms of LNCC: which of them is a correlation on volumes whose mean is large beside their spread."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcstab.models.liquidreg.lncc import centred_lncc, guarded_lncc, raw_lncc

WINDOW = 9


def noise(offset: float, amplitude: float, seed: int = 0, edge: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return offset + amplitude * torch.rand(1, 1, edge, edge, edge, generator=generator)


def half_flat(offset: float, seed: int) -> Tensor:
    """Noise in one half, a constant in the other, as a background is."""
    volume = noise(offset, 1.0, seed)
    volume[:, :, :16] = offset
    return volume


def by_hand(fixed: Tensor, warped: Tensor, window: int) -> Tensor:
    """Correlation coefficients of whole windows, in fp64, from NumPy: inner voxels only."""
    reach = window // 2
    f, w = (volume[0, 0].double().numpy() for volume in (fixed, warped))
    places = range(reach, f.shape[0] - reach)
    values = np.array(
        [
            np.corrcoef(f[box].ravel(), w[box].ravel())[0, 1]
            for i in places
            for j in places
            for k in places
            for box in [tuple(slice(n - reach, n + reach + 1) for n in (i, j, k))]
        ]
    )
    return torch.from_numpy(values.reshape((len(places),) * 3))


def inner(values: Tensor, window: int) -> Tensor:
    reach = window // 2
    return values[0, 0, reach:-reach, reach:-reach, reach:-reach]


@pytest.mark.parametrize("form", [raw_lncc, centred_lncc, lambda *pair: guarded_lncc(*pair).values])
def test_all_forms_are_correlations_of_windows_where_numbers_are_small(form) -> None:  # type: ignore[no-untyped-def]
    fixed = noise(0.0, 1.0, 0, edge=10)
    warped = 0.5 * fixed + 0.5 * noise(0.0, 1.0, 1, edge=10)
    found = inner(form(fixed, warped, 5), 5).double()
    torch.testing.assert_close(found, by_hand(fixed, warped, 5), atol=2e-3, rtol=0.0)


@pytest.mark.parametrize(("offset", "amplitude"), [(100.0, 0.1), (1000.0, 1.0)])
def test_an_offset_breaks_the_write_ups_forms(offset: float, amplitude: float) -> None:
    fixed, warped = (noise(offset, amplitude, seed) for seed in (0, 1))
    raw = raw_lncc(fixed, warped, WINDOW)
    assert 0.1 < float(raw.isnan().float().mean()) < 0.4
    assert float(raw.nan_to_num().abs().max()) > 1.5
    in_fp64 = raw_lncc(fixed.double(), warped.double(), WINDOW)
    assert bool(in_fp64.isfinite().all())
    assert float(in_fp64.abs().max()) < 1.0, "rounding is the cause, nothing else"
    guarded = guarded_lncc(fixed, warped, WINDOW)
    assert bool(guarded.values.isfinite().all())
    assert float((guarded.values.abs() > 1.0).float().mean()) > 0.1, "finite, and no correlation"
    assert int(guarded.hidden.sum()) > 1000
    centred = centred_lncc(fixed, warped, WINDOW)
    torch.testing.assert_close(centred.double(), in_fp64, atol=0.01, rtol=0.0)


def test_the_guard_counts_nothing_where_nothing_is_impossible() -> None:
    guarded = guarded_lncc(noise(0.0, 1.0, 0), noise(0.0, 1.0, 1), WINDOW)
    assert int(guarded.hidden.sum()) == 0


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6, -1e6])
@pytest.mark.parametrize("amplitude", [1e-3, 1.0, 1e4])
def test_the_centred_form_stays_within_one(offset: float, amplitude: float) -> None:
    volumes = [offset + amplitude * half_flat(0.0, seed) for seed in (0, 1)]
    volumes.append(volumes[0].roll(1, 4))
    for warped in (*volumes, -volumes[0]):
        values = centred_lncc(volumes[0], warped, WINDOW)
        assert bool(values.isfinite().all())
        assert float(values.abs().max()) <= 1.0


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6, -1e6])
def test_flat_volumes_are_uncorrelated_and_have_a_gradient(value: float) -> None:
    flat = torch.full((1, 1, 12, 12, 12), value)
    warped = flat.clone().requires_grad_()
    values = centred_lncc(flat, warped, WINDOW)
    assert float(values.detach().abs().max()) < 1e-3
    values.mean().backward()
    assert warped.grad is not None
    assert bool(warped.grad.isfinite().all())


def test_the_centred_form_does_not_see_offset_and_scale() -> None:
    fixed, warped = noise(0.0, 1.0, 0), noise(0.0, 1.0, 1)
    here = centred_lncc(fixed, warped, WINDOW)
    there = centred_lncc(50.0 * fixed + 1000.0, warped, WINDOW)
    torch.testing.assert_close(here, there, atol=2e-3, rtol=0.0)


def test_the_centred_form_is_the_root_of_monais() -> None:
    """MONAI has the square, pads with zeros (so inner voxels are compared), and a bound instead of our two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.losses import LocalNormalizedCrossCorrelationLoss
    fixed = torch.randn(1, 1, 14, 14, 14, generator=torch.Generator().manual_seed(0))
    warped = fixed + 0.5 * torch.randn(fixed.shape, generator=torch.Generator().manual_seed(1))
    reference = -LocalNormalizedCrossCorrelationLoss(kernel_size=5, reduction="none")(warped, fixed)
    ours = centred_lncc(fixed, warped, 5).square()
    torch.testing.assert_close(inner(ours, 5), inner(reference, 5), atol=3e-3, rtol=0.0)


def test_fp32_is_near_its_twin_in_fp64_and_half_precision_is_widened() -> None:
    fixed, warped = half_flat(200.0, 0), half_flat(200.0, 1)
    here = centred_lncc(fixed, warped, WINDOW)
    torch.testing.assert_close(
        here.double(), centred_lncc(fixed.double(), warped.double(), WINDOW), atol=1e-4, rtol=0.0
    )
    assert centred_lncc(fixed.bfloat16(), warped.bfloat16(), WINDOW).dtype == torch.float32


@pytest.mark.parametrize("form", [raw_lncc, centred_lncc, lambda *pair: guarded_lncc(*pair).values])
def test_gradients(form) -> None:  # type: ignore[no-untyped-def]
    fixed, warped = (noise(0.0, 1.0, seed, edge=4).double() for seed in (0, 1))
    warped.requires_grad_()
    assert torch.autograd.gradcheck(lambda volume: form(fixed, volume, 3), (warped,))


def test_two_independent_noises_have_the_write_ups_stable_loss() -> None:
    """Its loss of 0.0048 lies within what no registration at all gives: 20 draws of noise against noise."""
    losses = [-float(centred_lncc(noise(0.0, 1.0, n), noise(0.0, 1.0, 100 + n), WINDOW).mean()) for n in range(20)]
    assert abs(float(np.mean(losses))) < 0.005
    assert np.std(losses) > 0.002
    assert min(losses) < 0.0048 < np.mean(losses) + 2 * np.std(losses)
    itself = -float(centred_lncc(noise(0.0, 1.0, 0), noise(0.0, 1.0, 0), WINDOW).mean())
    assert itself < -0.99, "where registration ends"
