"""Statistics estimated anew: those of a float64 reference, and nothing else has moved."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcstab.stability.batchnorm.layers import norm_layers
from hpcstab.stability.batchnorm.reestimate import reestimate


def batches(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(6, 4, 7, generator=generator) * 3.0 + 100.0 for _ in range(count)]


def reference(seen: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over batches of each batch's mean and unbiased variance, in float64."""
    values = [batch.double().transpose(0, 1).flatten(1).numpy() for batch in seen]
    return np.mean([v.mean(1) for v in values], 0), np.mean([v.var(1, ddof=1) for v in values], 0)


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_they_equal_a_float64_reference(momentum: float | None) -> None:
    layer = nn.BatchNorm1d(4, momentum=momentum)
    layer.running_mean.fill_(math.nan)  # type: ignore[union-attr]
    assert reestimate(layer, {"(network)": layer}, batches(), layer) == {"(network)": 5}
    mean, var = reference(batches())
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-6)  # type: ignore[arg-type]
    np.testing.assert_allclose(layer.running_var, var, rtol=1e-5)  # type: ignore[arg-type]
    assert layer.momentum == momentum


def test_passes_that_are_not_finite_do_not_count() -> None:
    layer = nn.BatchNorm1d(4)
    given = batches()
    given[1] = given[1] * math.nan
    given[3] = given[3].index_fill(0, torch.tensor([2]), math.inf)
    assert reestimate(layer, {"x": layer}, given, layer) == {"x": 3}
    mean, _ = reference([batches()[index] for index in (0, 2, 4)])
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-6)  # type: ignore[arg-type]


def test_without_a_clean_pass_a_layer_stays_as_it_was() -> None:
    layer = nn.BatchNorm1d(4)
    layer.running_var.fill_(-2.0)  # type: ignore[union-attr]
    assert reestimate(layer, {"x": layer}, [batch * math.nan for batch in batches()], layer) == {"x": 0}
    assert layer.running_mean.tolist() == [0.0] * 4  # type: ignore[union-attr]
    assert layer.running_var.tolist() == [-2.0] * 4  # type: ignore[union-attr]


def test_a_layer_that_is_called_twice_a_pass_has_the_mean_of_its_calls() -> None:
    layer = nn.BatchNorm1d(4)

    def twice(batch: Tensor) -> None:
        layer(batch)
        layer(batch * 2.0)

    assert reestimate(layer, {"x": layer}, batches(2), twice) == {"x": 4}
    mean, _ = reference(batches(2))
    np.testing.assert_allclose(layer.running_mean, 1.5 * mean, rtol=1e-6)  # type: ignore[arg-type]


def test_instance_normalisation_too() -> None:
    layer = nn.InstanceNorm1d(4, track_running_stats=True)
    reestimate(layer, {"x": layer}, batches(), layer)
    mean, _ = reference(batches())  # the mean over samples of their means is the batch's
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_else_moves(fails: bool) -> None:
    """Other layers' statistics, the count of seen batches, modes, momentum, hooks: also when a pass raises."""
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5))
    for batch in batches(3):
        network(batch)
    network[3].eval()  # frozen by its author
    layers = dict(norm_layers(network))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]

    def forward(batch: Tensor) -> None:
        network(batch)
        if fails:
            raise KeyError("batch")

    run: Callable[[], object] = lambda: reestimate(network, {"2": layers["2"]}, batches(), forward)  # noqa: E731
    if fails:
        with pytest.raises(KeyError):
            run()
    else:
        run()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == (set() if fails else {"2.running_mean", "2.running_var"})
    assert [module.training for module in network.modules()] == modes
    assert network[2].momentum == 0.3
    assert not network[2]._forward_hooks
    assert not network[2]._forward_pre_hooks
