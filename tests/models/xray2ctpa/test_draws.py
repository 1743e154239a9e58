"""Draws by sample: the same whatever the batch, spread over all t in an epoch, and as random as they should be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcstab.models.xray2ctpa.draws import Draws, draw, normal, stratified_timesteps, uniform
from tests.models.xray2ctpa.making import make_context

NUM_ITEMS = 512
SHAPE = torch.Size((4, 4, 4, 4))


def draws_of(numbers: Tensor, step: int = 3, epoch: int = 0) -> Draws:
    return draw(
        make_context(step, epoch),
        numbers,
        SHAPE,
        num_timesteps=1000,
        num_items=NUM_ITEMS,
        num_slices=4,
        dropout=0.1,
    )


def test_a_sample_draws_the_same_in_any_batch() -> None:
    """Neither its place, nor the others, nor ranks or micro-batches that share a batch change it."""
    together = draws_of(torch.tensor([5, 17, 300, 2]))
    for part in ([0, 2], [3], [2, 1]):
        alone = draws_of(torch.tensor([5, 17, 300, 2])[part])
        for ours, theirs in zip(alone, together, strict=True):
            assert torch.equal(ours, theirs[part])


def test_steps_and_samples_and_seeds_draw_differently() -> None:
    numbers = torch.arange(4)
    first = draws_of(numbers).noise
    assert not torch.equal(first, draws_of(numbers, step=4).noise)
    assert not torch.equal(first[0], first[1])
    other_seed = normal(make_context(3, seed=1), "noise", numbers, SHAPE)
    assert not torch.equal(first, other_seed)


def test_an_epoch_has_every_part_of_t_once() -> None:
    """So that the top, where x_0 is amplified, comes in each: with 512 items it is t = 998 or 999."""
    numbers = torch.arange(NUM_ITEMS)
    for epoch in range(3):
        within = uniform(make_context(0, epoch), "single", numbers, 1)[:, 0]
        t = stratified_timesteps(make_context(0, epoch), numbers, within, 1000, NUM_ITEMS)
        parts = (t.double() / 1000 * NUM_ITEMS).round().long()
        assert int(t.max()) >= 998
        assert int(t.min()) <= 1
        assert len(parts.unique()) > 0.7 * NUM_ITEMS
        assert torch.histc(t.float(), bins=8, min=0, max=1000).tolist() == pytest.approx([64] * 8, abs=1)


def test_epochs_deal_anew() -> None:
    numbers, within = torch.arange(NUM_ITEMS), torch.zeros(NUM_ITEMS)
    first, second = (stratified_timesteps(make_context(0, e), numbers, within, 1000, NUM_ITEMS) for e in (0, 1))
    assert (first != second).double().mean() > 0.9


def test_uniform_numbers_are_uniform() -> None:
    values = uniform(make_context(), "test", torch.arange(64), 4096).double()
    assert 0.0 <= float(values.min()) < float(values.max()) < 1.0
    assert float(values.mean()) == pytest.approx(0.5, abs=4 * 12**-0.5 / values.numel() ** 0.5)
    counts = torch.histc(values.float(), bins=64, min=0.0, max=1.0).double()
    expected = values.numel() / 64
    assert float(((counts - expected).square() / expected).sum()) < 120  # chi-squared of 63: 120 is at 1e-5


def test_normal_numbers_are_normal_and_independent() -> None:
    values = normal(make_context(), "test", torch.arange(64), torch.Size((4096,))).double()
    count = values.numel()
    assert float(values.mean()) == pytest.approx(0.0, abs=4 / count**0.5)
    assert float(values.var()) == pytest.approx(1.0, abs=4 * (2 / count) ** 0.5)
    assert float(values.pow(4).mean()) == pytest.approx(3.0, abs=4 * (96 / count) ** 0.5)
    correlations = torch.corrcoef(values).fill_diagonal_(0.0)
    assert float(correlations.abs().max()) < 5.5 / 4096**0.5
    along = (values[:, 1:] * values[:, :-1]).mean()
    assert float(along) == pytest.approx(0.0, abs=4 / count**0.5)


def test_dropout_is_a_share_of_the_samples() -> None:
    dropped = torch.cat([draws_of(torch.arange(NUM_ITEMS), step=step).dropped for step in range(4)])
    assert float(dropped.double().mean()) == pytest.approx(0.1, abs=0.03)
    assert draws_of(torch.arange(NUM_ITEMS)).slices.unique().tolist() == [0, 1, 2, 3]
