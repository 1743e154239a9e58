"""Running statistics: what is sick is found by name, repaired where it is, and nothing of it waits for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hpcstab.stability.batchnorm.running_statistics import Repair, RunningStatistics, SickLayer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))


def statistics_of(layer: Any) -> list[list[float]]:
    return [layer.running_mean.tolist(), layer.running_var.tolist()]


def found_by(statistics: RunningStatistics, refused: Tensor | None = None) -> list[SickLayer]:
    findings = statistics.check(refused)
    assert findings is not None
    return findings.read()


@pytest.mark.parametrize("repair", ["none", "reset", "restore", "reestimate"])
def test_sick_layers_are_found_by_name_with_what_is_wrong(repair: Repair) -> None:
    net = network()
    statistics = RunningStatistics(net, repair)
    assert found_by(statistics) == []
    net[1].running_mean[:2] = torch.tensor([math.nan, -math.inf])
    net[3].running_var[:2] = torch.tensor([-0.5, -math.inf])
    assert found_by(statistics) == [SickLayer("1", 1, 1, 0), SickLayer("3", 0, 1, 1)]
    assert bool(found_by(statistics)) == (repair == "none")


def test_reset_is_the_write_ups_form() -> None:
    """Mean and variance by themselves, as a whole: what was finite in the sick one is lost as well."""
    net = network()
    statistics = RunningStatistics(net, "reset")
    net[1].running_mean[:] = torch.tensor([1.0, math.nan, 2.0])
    net[1].running_var[:] = 5.0
    net[3].running_var[:] = torch.tensor([4.0, 4.0, -1.0])
    found_by(statistics)
    assert statistics_of(net[1]) == [[0.0] * 3, [5.0] * 3]
    assert statistics_of(net[3]) == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("repair", ["restore", "reestimate"])
def test_restore_brings_back_the_last_check_that_the_layer_passed(repair: Repair) -> None:
    net = network()
    statistics = RunningStatistics(net, repair)
    net(torch.randn(4, 2, 5))
    sound = [statistics_of(net[1]), statistics_of(net[3])]
    found_by(statistics)
    net(torch.randn(4, 2, 5))
    later = statistics_of(net[3])
    net[1].running_var[0] = math.inf
    found_by(statistics)
    assert statistics_of(net[1]) == sound[0]
    assert statistics_of(net[3]) == later  # it was sound: it keeps what it has


def test_what_a_refused_step_left_is_not_kept() -> None:
    net = network()
    statistics = RunningStatistics(net, "restore")
    net(torch.randn(4, 2, 5))
    found_by(statistics, refused=torch.ones(()))
    net[1].running_mean.fill_(math.nan)
    found_by(statistics, refused=torch.zeros(()))
    assert statistics_of(net[1]) == [[0.0] * 3, [1.0] * 3]


def test_the_kept_ones_survive_a_checkpoint() -> None:
    net, other = network(), network()
    statistics = RunningStatistics(net, "restore")
    net(torch.randn(4, 2, 5))
    found_by(statistics)
    resumed = RunningStatistics(other, "restore")
    resumed.load_state_dict(statistics.state_dict())
    other[1].running_mean.fill_(math.nan)
    found_by(resumed)
    assert statistics_of(other[1]) == statistics_of(net[1])


def test_layers_without_running_statistics_are_no_matter() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2), nn.LayerNorm(2))
    assert RunningStatistics(net, "reset").check() is None


def test_every_kind_of_layer_that_keeps_them_is_looked_at() -> None:
    net = nn.ModuleDict({"instance": nn.InstanceNorm2d(2, track_running_stats=True), "sync": nn.SyncBatchNorm(2)})
    statistics = RunningStatistics(net, "none")
    for layer in net.values():
        layer.running_mean[0] = math.nan  # type: ignore[index, operator]
    assert [layer.name for layer in found_by(statistics)] == ["instance", "sync"]
    assert list(RunningStatistics(nn.BatchNorm1d(2), "none").layers) == ["(network)"]


@pytest.mark.parametrize("repair", ["none", "reset", "restore", "reestimate"])
def test_a_check_never_waits_for_the_device(repair: Repair) -> None:
    """Fake tensors have no values: whatever needs one raises."""
    with FakeTensorMode():
        net = network()
        statistics = RunningStatistics(net, repair)
        findings = statistics.check(torch.zeros(()))
        assert findings is not None
        with pytest.raises(DataDependentOutputException):
            findings.read()
