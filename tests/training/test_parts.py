"""Parts of the line on their own: schedules, phases, order, probes, evaluation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hpcstab.config.common import SchedulerConfig
from hpcstab.errors import ConfigError
from hpcstab.stability.finite import nonfinite_names
from hpcstab.stability.gate.clipping import Clipping, clip_scale_of
from hpcstab.stability.phases import phase_factor
from hpcstab.task import Maximum, Sum
from hpcstab.training.batches import EpochOrder, to_device
from hpcstab.training.context import TrainingContext
from hpcstab.training.measure import ModuleProbe
from hpcstab.training.objective import Objective
from hpcstab.training.optimizers import learning_rate
from tests.training.toy import toy_config


def context(step: int = 0) -> TrainingContext:
    return TrainingContext(seed=0, step=step, epoch=0, device=torch.device("cpu"))


def test_cosine_with_warm_up() -> None:
    scheduler = SchedulerConfig.model_validate({"name": "cosine", "warmup": {"steps": 4}, "min_lr_fraction": 0.1})
    rates = [learning_rate(update, 2.0, scheduler, warmup_updates=4, total=24) for update in range(25)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[14] == pytest.approx(2.0 * 0.55)  # half-way down
    assert rates[24] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize(
    ("step", "start", "ramp", "factor"),
    [
        (0, 0, 0, 1.0),
        (4, 5, 10, 0.0),
        (5, 5, 10, 0.1),
        (14, 5, 10, 1.0),
        (99, 5, 10, 1.0),
        (5, 5, 1, 1.0),
        (5, 5, 0, 1.0),
    ],
)
def test_phase(step: int, start: int, ramp: int, factor: float) -> None:
    assert phase_factor(step, start, ramp) == pytest.approx(factor)


def test_objective_weighs_terms_and_shrinks_phases_with_the_scale() -> None:
    phases = {"size": {"start": {"epochs": 2}, "ramp": {"steps": 40}}}
    losses = toy_config(losses={"weights": {"mse": 2.0, "size": 3.0}, "phases": phases}).losses
    objective = Objective(losses, steps_per_epoch=10, duration_factor=0.5)
    terms = {"mse": torch.tensor(1.0), "size": torch.tensor(10.0)}
    assert float(objective.total(terms, step=9)) == 2.0
    assert float(objective.total(terms, step=19)) == pytest.approx(2.0 + 3.0 * 10.0 * 0.5)
    assert float(objective.total(terms, step=1000)) == 32.0


def test_a_term_with_several_phases_goes_from_the_part_of_one_to_that_of_the_next() -> None:
    stages = [
        {"start": {"steps": 10}, "ramp": {"steps": 0}, "to": 0.1},
        {"start": {"steps": 30}, "ramp": {"steps": 20}, "to": 1.0},
    ]
    losses = toy_config(losses={"weights": {"mse": 2.0, "size": 3.0}, "phases": {"size": stages}}).losses
    objective = Objective(losses, steps_per_epoch=10, duration_factor=1.0)
    weights = [objective.weight("size", step) for step in (9, 10, 29, 39, 49, 1000)]
    assert weights == pytest.approx([0.0, 0.3, 0.3, 3.0 * 0.55, 3.0, 3.0])
    assert [objective.unchanged_since(step) for step in (9, 29, 39, 60)] == [0, 10, 39, 49]


def test_zero_weight_leaves_a_term_out_unless_the_write_up_multiplied_it() -> None:
    """0 x inf = NaN is the site of write-up 1's failure: it must be possible to keep it, and not by default."""
    terms = {"mse": torch.tensor(1.0), "size": torch.tensor(math.inf)}
    assert float(Objective(toy_config().losses, 10, 1.0).total(terms, 0)) == 1.0
    kept = toy_config(losses={"multiply_zero_weights": True}).losses
    assert math.isnan(float(Objective(kept, 10, 1.0).total(terms, 0)))


def test_nothing_to_train_is_an_error() -> None:
    losses = toy_config(losses={"weights": {"mse": 0.0, "size": 0.0}}).losses
    with pytest.raises(ConfigError, match="every term has weight zero"):
        Objective(losses, 10, 1.0).total({"mse": torch.tensor(1.0), "size": torch.tensor(1.0)}, 0)


def test_order_is_a_permutation_that_can_be_entered_in_the_middle() -> None:
    whole = list(EpochOrder(10, 3, seed=1, epoch=2, first=0))
    assert [len(batch) for batch in whole] == [3, 3, 3]
    assert len({index for batch in whole for index in batch}) == 9
    assert list(EpochOrder(10, 3, seed=1, epoch=2, first=2)) == whole[2:]
    assert list(EpochOrder(10, 3, seed=1, epoch=3, first=0)) != whole


def test_batch_size_does_not_change_the_permutation() -> None:
    small = [index for batch in EpochOrder(12, 2, seed=1, epoch=0, first=0) for index in batch]
    large = [index for batch in EpochOrder(12, 6, seed=1, epoch=0, first=0) for index in batch]
    assert small == large


def test_to_device_keeps_the_form_of_a_batch() -> None:
    batch = {"a": torch.zeros(2), "b": [torch.ones(1), "id"], "c": (torch.ones(1),)}
    moved = to_device(batch, torch.device("cpu"))
    assert type(moved["b"]) is list
    assert type(moved["c"]) is tuple
    assert moved["b"][1] == "id"


def test_keyed_generator_depends_on_purpose_and_step() -> None:
    def draw(step: int, purpose: str) -> float:
        return float(torch.rand((), generator=context(step).generator(purpose)))

    assert draw(3, "noise") == draw(3, "noise")
    assert len({draw(3, "noise"), draw(4, "noise"), draw(3, "directions")}) == 3


@pytest.mark.parametrize(
    ("norm", "max_norm", "scale"),
    [(10.0, 1.0, 0.1), (0.5, 1.0, 1.0), (10.0, None, 1.0), (3.0, 2.0, 2.0 / 3.0), (math.inf, 1.0, 0.0)],
)
def test_clipping_scales_gradients_to_the_norm(norm: float, max_norm: float | None, scale: float) -> None:
    divisor = Clipping(max_norm).divisor(torch.tensor(norm))
    assert (1.0 if divisor is None else clip_scale_of(float(divisor))) == pytest.approx(scale, rel=1e-5)


def test_clipping_a_norm_that_is_nan_hides_nothing() -> None:
    divisor = Clipping(1.0).divisor(torch.tensor(math.nan))
    assert divisor is not None
    assert math.isnan(clip_scale_of(float(divisor)))


def test_nonfinite_names() -> None:
    tensors = {
        "a": torch.ones(3),
        "b": torch.tensor([1.0, math.inf]),
        "c": torch.tensor(1),
        "d": torch.tensor(math.nan),
    }
    assert nonfinite_names(tensors.items()) == ["b", "d"]
    assert nonfinite_names([]) == []


def test_probe_sees_a_module_without_gradient() -> None:
    """What a detached hyper-network looks like: gradient and update of the cut part are exactly zero."""
    network = nn.ModuleDict({"cut": nn.Linear(2, 2), "live": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    network["live"](network["cut"](torch.ones(1, 2)).detach()).sum().backward()
    probe = ModuleProbe(network)
    optimizer.step()
    rows = {module: (grad_norm, update_norm) for module, grad_norm, update_norm in probe.after_step().read()}
    assert rows["cut"] == (0.0, 0.0)
    assert rows["live"][0] > 0
    assert rows["live"][1] == pytest.approx(0.5 * rows["live"][0], rel=1e-5)


def test_partials_merge() -> None:
    assert float(Sum(torch.tensor(1.0)).merge(Sum(torch.tensor(2.0))).value) == 3.0
    assert float(Maximum(torch.tensor(1.0)).merge(Maximum(torch.tensor(2.0))).value) == 2.0
