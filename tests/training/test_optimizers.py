"""Several optimizers of one task: each steps its own parameters, one gate decision covers all, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.config.common import OptimizerConfig
from hpcstab.errors import ConfigError
from hpcstab.metrics import read_history
from hpcstab.rundir import RunDir
from hpcstab.seeds import keyed_seed
from hpcstab.stability.replay.capsule import read_capsule
from hpcstab.stability.replay.last_update import take_back
from hpcstab.training import Trainer
from hpcstab.training.build import build_trainer
from hpcstab.training.optimizers import Optimizers, build_optimizers, learning_rate
from hpcstab.training.replaying import replay_capsule
from tests.training.test_gate import nan_at, same
from tests.training.toy import Config, ToyTask, toy_config, toy_trainer

SGD = OptimizerConfig(name="sgd", lr=0.05, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, momentum=0.5)
SCHEDULE: dict[str, Any] = {"name": "cosine", "warmup": {"steps": 4}, "min_lr_fraction": 0.1}
NUM_STEPS = 20


class TwoOptimizers(ToyTask):
    """The first layer under the config's Adam, the last one under SGD; ``poison`` as in Faulty."""

    def __init__(self, config: Config, poison: Callable[[int, Tensor], Tensor] = lambda step, inputs: inputs) -> None:
        super().__init__(config)
        self.poison = poison

    def loss_terms(self, network: nn.Module, batch: Any, context: Any) -> Any:
        inputs, targets = batch
        return super().loss_terms(network, (self.poison(context.step, inputs), targets), context)

    def optimizers(self, network: nn.Module) -> Mapping[str, tuple[OptimizerConfig, list[Tensor]]]:
        first, last = ([*network[index].parameters()] for index in (0, -1))  # type: ignore[index]
        return {"first": (self._config.optimizer, first), "last": (SGD, last)}


def config_of(gate: str = "closed") -> Config:
    return toy_config(
        scheduler=SCHEDULE, trainer={"checkpoint_every": {"steps": 5}}, stability={"gate": gate, "clip_grad_norm": None}
    )


def trained(
    root: Path, config: Config, poison: Callable[[int, Tensor], Tensor] | None = None
) -> tuple[RunDir, Trainer]:
    run, trainer = toy_trainer(root, TwoOptimizers(config, poison) if poison else TwoOptimizers(config), config)
    assert trainer.train().state == "completed"
    trainer.records.close()
    return run, trainer


def bare_loop(config: Config, without: tuple[int, ...] = ()) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A plain loop with two optimizers, which never sees the batches of some steps."""
    task = ToyTask(config)
    torch.manual_seed(keyed_seed(0, "network"))
    network = task.network()
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(network[0].parameters(), lr=0.01, fused=True),  # type: ignore[index]
        torch.optim.SGD(network[-1].parameters(), lr=0.05, momentum=0.5, fused=True),  # type: ignore[index]
    ]
    items, step, update = task.dataset("train"), 0, 0
    for epoch in range(NUM_STEPS // 5):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(keyed_seed(0, "permutation", epoch)))
        for chosen in order.split(8):
            if step not in without:
                torch.manual_seed(keyed_seed(0, "step", step))
                lr = learning_rate(update, 0.01, config.scheduler, 4, NUM_STEPS)
                optimizers[0].param_groups[0]["lr"], optimizers[1].param_groups[0]["lr"] = lr, lr * (0.05 / 0.01)
                network.zero_grad()
                (network(items.inputs[chosen]) - items.targets[chosen]).square().mean().backward()
                for optimizer in optimizers:
                    optimizer.step()
                update += 1
            step += 1
    return network, optimizers


@pytest.mark.parametrize("bad", [(), (3,), (0, 11)])
def test_two_optimizers_are_those_of_a_plain_loop(tmp_path: Path, bad: tuple[int, ...]) -> None:
    """Bitwise, scheduler included; a step that the gate refuses leaves nothing in either of them."""
    config = config_of()
    _, trainer = trained(tmp_path, config, nan_at(*bad))
    network, optimizers = bare_loop(config, bad)
    assert same(trainer.network.state_dict(), network.state_dict())
    states = trainer.optimizer.state_dict()
    assert [*states] == ["first", "last"]
    for state, optimizer in zip(states.values(), optimizers, strict=True):
        assert same(state["state"], optimizer.state_dict()["state"])


def test_one_optimizer_is_saved_as_it_always_was(tmp_path: Path) -> None:
    config = config_of()
    _, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    trainer.records.close()
    assert [*trainer.optimizer.state_dict()] == ["state", "param_groups"]


@pytest.mark.parametrize("stop_after", [1, 7, 13])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    config = config_of()
    _, whole = trained(tmp_path / "whole", config)
    turns = iter(range(10**9))
    run, part = toy_trainer(
        tmp_path / "part",
        TwoOptimizers(config),
        config,
        stop_requested=lambda: "SIGTERM" if next(turns) >= stop_after else None,
    )
    assert part.train().state == "stopped"
    part.records.close()
    again = build_trainer(TwoOptimizers(config), config, run, 0, 2, "error")
    assert again.train().state == "completed"
    again.records.close()
    assert same(whole.network.state_dict(), again.network.state_dict())
    assert same(whole.optimizer.state_dict(), again.optimizer.state_dict())


def test_a_failing_step_replays_and_its_last_update_is_known(tmp_path: Path) -> None:
    """Undone is the update of both, each at its own learning rate."""
    config = config_of("open")
    run, trainer = toy_trainer(tmp_path, TwoOptimizers(config, nan_at(6)), config)
    trainer.train()
    trainer.records.close()
    assert next(step for step, row in read_history(run.metrics_csv).items() if row["loss_finite"] == "0") == 6
    capsule = read_capsule(run.capsules / "step_00000006")
    answer = replay_capsule(TwoOptimizers(config, nan_at(6)), config, capsule, torch.device("cpu"))
    assert answer.same is True
    assert not next(rerun for rerun in answer.reruns if rerun.name == "undone").measured.error


def test_take_back_undoes_both_updates() -> None:
    config = config_of()
    network = ToyTask(config).network()
    optimizers = build_optimizers(TwoOptimizers(config), network, config.optimizer)
    for _ in range(2):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizers.zero_grad()
        optimizers.set_learning_rate(0.004)
        network(torch.ones(2, 4)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    optimizers.set_learning_rate(0.001)  # the rate of another step
    take_back(optimizers, 1.0, lr=0.004)
    for now, then in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(now.detach(), then)


def test_every_parameter_has_exactly_one_optimizer() -> None:
    config = config_of()

    class Forgetful(TwoOptimizers):
        def optimizers(self, network: nn.Module) -> Mapping[str, tuple[OptimizerConfig, list[Tensor]]]:
            return {"first": super().optimizers(network)["first"]}

    class Twice(TwoOptimizers):
        def optimizers(self, network: nn.Module) -> Mapping[str, tuple[OptimizerConfig, list[Tensor]]]:
            return {"all": (SGD, [*network.parameters()]), **super().optimizers(network)}

    for task, counts in ((Forgetful(config), "2 parameters, 2 in all"), (Twice(config), "4 parameters, 8 in all")):
        with pytest.raises(ConfigError, match=counts):
            build_optimizers(task, task.network(), config.optimizer)


def test_a_state_of_other_optimizers_is_refused() -> None:
    config = config_of()
    network = ToyTask(config).network()
    several = build_optimizers(TwoOptimizers(config), network, config.optimizer)
    one = build_optimizers(ToyTask(config), network, config.optimizer)
    for target, source in ((several, one), (one, several)):
        with pytest.raises((ValueError, KeyError)):
            target.load_state_dict(source.state_dict())
    swapped = dict(zip(("first", "last"), reversed(several.state_dict().values()), strict=True))
    with pytest.raises(ValueError, match="the state of first is not that of Adam"):
        several.load_state_dict(swapped)


def test_a_single_optimizer_gets_the_rate_to_the_bit() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizers = Optimizers({"only": torch.optim.SGD([parameter], lr=0.1)}, 0.1)
    for lr in (0.3, 1e-7, math.pi):
        optimizers.set_learning_rate(lr)
        assert optimizers.param_groups[0]["lr"] == lr
