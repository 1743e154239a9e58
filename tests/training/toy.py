"""A task small enough to reason about: y = W x on 40 items, with faults on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hpcstab.config import FailureCondition, LossesConfig, RunConfig, Section, validate_section
from hpcstab.rundir import RunDir, create_run_dir, write_json
from hpcstab.task import Baseline, DataFinding, Metric, Partial, Picture, Split, StepContext, Sum
from hpcstab.training import Trainer
from hpcstab.training.build import build_trainer


class Network(Section):
    batchnorm: bool


class Weights(Section):
    mse: float
    size: float


class Losses(LossesConfig):
    weights: Weights


class Config(RunConfig):
    network: Network
    losses: Losses


BATCHNORM: dict[str, Any] = {
    "momentum": None,
    "eps": None,
    "check_every": None,
    "check_after_load": False,
    "check_before_evaluation": False,
    "repair": "none",
    "reestimate_batches": 3,
    "max_repairs": None,
}

VALUES: dict[str, Any] = {
    "network": {"batchnorm": False},
    "data": {"num_samples": 48, "train_split": 0.8, "batch_size": 8, "num_workers": 0, "faults": []},
    "losses": {
        "weights": {"mse": 1.0, "size": 0.0},
        "phases": {},
        "multiply_zero_weights": False,
        "on_bad_term": "ignore",
        "bad_term_ramp": {"steps": 5},
    },
    "optimizer": {
        "name": "adam",
        "lr": 0.01,
        "weight_decay": 0.0,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "momentum": 0.0,
    },
    "scheduler": {"name": "constant", "warmup": {"steps": 0}, "min_lr_fraction": 0.0},
    "trainer": {
        "epochs": 1,
        "max_steps": 20,
        "duration_factor": 1.0,
        "nonfinite_budget": 3,
        "evaluate_every": {"steps": 10},
        "checkpoint_every": {"steps": 1000},
        "probe_every": {"steps": 5},
        "micro_batches": 1,
        "ema_decay": None,
        "max_eval_samples": None,
        "tensorboard": "off",
    },
    "precision": {"dtype": "fp32", "tf32": False, "loss_scale": None},
    "stability": {
        "gate": "open",
        "guards": "none",
        "clip_grad_norm": None,
        "health_every": {"steps": 10},
        "batchnorm": BATCHNORM,
    },
}


class Items:
    """Items of a split: x (4,) and y (2,) = W x."""

    def __init__(self, num: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(num, 4, generator=generator)
        self.targets = self.inputs @ torch.arange(8.0).reshape(4, 2) / 8.0
        self.ids = [f"item{index}" for index in range(num)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]


class ToyTask:
    """``change_loss(step, loss)`` lets a test put a fault into a step."""

    Config: ClassVar[type[RunConfig]] = Config
    metrics = (Metric("error", "1", "lower", "mean squared error"),)
    loss_term_names: tuple[str, ...] = ("mse", "size")
    diagnostics: tuple[str, ...] = ("output_absmax",)
    eval_batch_size = 4

    def __init__(self, config: Config, change_loss: Callable[[int, Tensor], Tensor] = lambda step, loss: loss) -> None:
        self._config = config
        self.change_loss = change_loss
        self._items = {"train": Items(40, 1), "validation": Items(8, 2)}

    def network(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(4, 3)]
        if self._config.network.batchnorm:
            layers.append(nn.BatchNorm1d(3))
        return nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(3, 2))

    def dataset(self, split: Split) -> Items:
        return self._items[split]

    def loss_terms(self, network: nn.Module, batch: Any, context: StepContext) -> Mapping[str, Tensor]:
        inputs, targets = batch
        outputs = network(inputs)
        context.diagnostic("output_absmax", outputs.abs().max())
        loss = self.change_loss(context.step, (outputs - targets).square().mean())
        return {"mse": loss, "size": outputs.square().mean()}

    def evaluate(self, network: nn.Module, batch: Any, context: StepContext) -> Mapping[str, Partial]:
        inputs, targets = batch
        return {"squared": Sum((network(inputs) - targets).square().sum()), "count": Sum(torch.tensor(targets.numel()))}

    def summarize(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        return {"error": totals["squared"] / totals["count"]}

    def baselines(self) -> Sequence[Baseline]:
        return [Baseline("zero", "floor", {"error": float(self._items["validation"].targets.square().mean())})]

    def data_facts(self) -> Mapping[str, int | float | str]:
        return {"source": "toy"}

    def samples(self, network: nn.Module, context: StepContext) -> Sequence[Picture]:
        return []

    def check_data(self) -> Sequence[DataFinding]:
        return []


def toy_config(**changes: Any) -> Config:
    """The toy's config with sections changed: ``toy_config(trainer={"max_steps": 5})``."""
    values = {name: {**section, **changes.get(name, {})} for name, section in VALUES.items()}
    return validate_section(Config, values, "toy")


def toy_trainer(
    root: Path,
    task: ToyTask,
    config: Config,
    failure: Sequence[FailureCondition] = (),
    stop_requested: Callable[[], str | None] = lambda: None,
) -> tuple[RunDir, Trainer]:
    """A run folder with a hand-made identity, and its trainer."""
    run = create_run_dir(root, "toy", "before", 0, "00" * 32)
    compare = {"primary": "error", "margin": 0.01, "horizon_steps": 20, "hierarchy": ["finite"]}
    write_json(run.run_json, {"run_id": run.run_id, "seed": 0, "compare": compare, "failure": []})
    trainer = build_trainer(task, config, run, 0, 1, "error", failure, stop_requested)
    return run, trainer
