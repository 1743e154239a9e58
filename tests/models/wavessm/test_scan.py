"""The selective scan against the recurrence step by step, in float64; and how wrong the clamped form is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcstab.models.wavessm.scan import clamped_recurrence, exact_recurrence, selective_scan
from hpcstab.stability.numerics import fp32_island


def sequential(log_decay: Tensor, drive: Tensor) -> Tensor:
    """The definition: one step after the other, differentiated by autograd."""
    state, states = torch.zeros_like(drive[0]), []
    for position in range(len(drive)):
        state = log_decay[position].exp() * state + drive[position]
        states.append(state)
    return torch.stack(states)


def draw(length: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Log decays of steps and rates as a network has them at its start, and a drive; float64, differentiable."""
    generator = torch.Generator().manual_seed(length)
    steps = torch.empty(length, *shape, dtype=torch.float64).uniform_(1e-3, 0.1, generator=generator)
    rates = torch.arange(1.0, shape[-1] + 1, dtype=torch.float64)
    drive = torch.randn(length, *shape, dtype=torch.float64, generator=generator)
    return (-steps * rates).requires_grad_(), drive.requires_grad_()


@pytest.mark.parametrize("length", [1, 2, 7, 64, 256, 4096])
def test_equals_the_sequential_recurrence_with_its_gradients(length: int) -> None:
    log_decay, drive = draw(length, 2, 3)
    weights = torch.randn(length, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for recurrence in (exact_recurrence, sequential):
        states = recurrence(log_decay, drive)
        results.append((states.detach(), *torch.autograd.grad((states * weights).sum(), (log_decay, drive))))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-12)


def test_fp32_stays_near_the_float64_twin_over_a_whole_image() -> None:
    log_decay, drive = draw(4096, 2, 3)
    single = exact_recurrence(log_decay.float(), drive.float())
    torch.testing.assert_close(single.double(), sequential(log_decay, drive), rtol=1e-5, atol=1e-5)


def test_gradients_of_gradients() -> None:
    log_decay, drive = draw(6, 2)
    assert torch.autograd.gradcheck(exact_recurrence, (log_decay, drive))
    assert torch.autograd.gradgradcheck(exact_recurrence, (log_decay, drive))


def test_decay_that_underflows_forgets_and_stays_finite() -> None:
    log_decay = torch.full((300, 1), -200.0, requires_grad=True)
    drive = torch.ones(300, 1, requires_grad=True)
    states = exact_recurrence(log_decay, drive)
    assert torch.equal(states, drive)
    states.sum().backward()
    assert log_decay.grad is not None and log_decay.grad.isfinite().all()


def error_of_clamped(length: int) -> tuple[float, Tensor]:
    """Largest relative error of the last states, for steps of 0.05 and rates -1 to -4 under a constant drive."""
    log_decay = (-0.05 * torch.arange(1.0, 5.0, dtype=torch.float64)).repeat(length, 1)
    drive = torch.ones(length, 4, dtype=torch.float64)
    exact, clamped = sequential(log_decay, drive), clamped_recurrence(log_decay, drive)
    return float(((clamped[-1] - exact[-1]) / exact[-1]).abs().max()), clamped


def test_the_clamped_scan_is_right_at_64_and_wrong_by_a_factor_of_28_at_256() -> None:
    assert error_of_clamped(64)[0] < 1e-12
    assert error_of_clamped(256)[0] == pytest.approx(28.3, abs=0.1)
    assert error_of_clamped(4096)[0] == pytest.approx(724, abs=1)


def test_states_of_the_clamped_scan_grow_with_the_length() -> None:
    """Nothing is forgotten after 20 nats: one state an image of 256 x 256 comes near the range of fp16."""
    _, states = error_of_clamped(4096)
    largest = states.amax(1)
    assert float(largest[4095]) == pytest.approx(2 * float(largest[2047]), rel=0.05)
    assert float(largest[4095]) * 16 == pytest.approx(torch.finfo(torch.float16).max, rel=0.05)


def scan_arguments(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    length, batch, channels, num_states = 20, 2, 3, 4

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    steps = normal(length, batch, channels).abs() * 0.1
    rates = -normal(num_states, channels).abs()
    arguments = (normal(length, batch, channels), steps, rates, *(normal(length, batch, num_states) for _ in range(2)))
    return tuple(argument.requires_grad_() for argument in arguments)


def test_selective_scan_by_hand_in_float64() -> None:
    inputs, steps, rates, write, read = scan_arguments(torch.float64)
    outputs, largest = selective_scan(inputs, steps, rates, write, read, exact_recurrence)
    seen = 0.0
    for image in range(2):
        for channel in range(3):
            state = torch.zeros(4, dtype=torch.float64)
            for t in range(20):
                step = steps[t, image, channel]
                state = (step * rates[:, channel]).exp() * state + step * write[t, image] * inputs[t, image, channel]
                seen = max(seen, float(state.detach().abs().max()))
                torch.testing.assert_close(outputs[t, image, channel], (read[t, image] * state).sum())
    assert float(largest) == pytest.approx(seen)


def test_gradients_of_the_selective_scan() -> None:
    def outputs(*arguments: Tensor) -> Tensor:
        return selective_scan(*arguments, exact_recurrence)[0]  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(outputs, scan_arguments(torch.float64))


def test_the_island_reads_states_in_fp32() -> None:
    arguments = scan_arguments(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = selective_scan(*arguments, exact_recurrence)  # type: ignore[arg-type]
        full, _ = fp32_island(selective_scan)(*arguments, exact_recurrence)  # type: ignore[arg-type]
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
