"""The toy as a task that a capsule alone can build again: its fault is a key of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hpcstab.config import RunConfig, Section, validate_section
from hpcstab.task import StepContext
from tests.training.toy import VALUES, ToyTask
from tests.training.toy import Config as ToyConfig

FAULTY_STEP = 7


class Network(Section):
    batchnorm: bool
    fault: Literal["none", "log", "exp", "narrow"]


class Config(ToyConfig):
    network: Network


class Last(nn.Module):
    """Does the fault in one step; ``shift`` is a buffer that no checkpoint holds."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.on = fault, False
        self.register_buffer("shift", torch.zeros(()), persistent=False)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        values = inputs * self.weight + self.shift
        if self.training:
            self.shift += 1.0
        if not self.on:
            return values
        if self.fault == "log":
            return values - (values - values.amax(1, keepdim=True)).log()
        if self.fault == "exp":
            return values + (values.detach() * 0 + 100.0 * self.weight).exp()
        return (values + 7e4).half().float() if self.fault == "narrow" else values


class Task(ToyTask):
    Config: ClassVar[type[RunConfig]] = Config

    def __init__(self, config: Config, seed: int) -> None:
        super().__init__(config)
        self._fault = config.network.fault

    def network(self) -> nn.Module:
        return nn.Sequential(super().network(), Last(self._fault))

    def loss_terms(self, network: nn.Module, batch: Any, context: StepContext) -> Mapping[str, Tensor]:
        network.get_submodule("1").on = context.step == FAULTY_STEP
        return super().loss_terms(network, batch, context)


def config_with(fault: str, **changes: Any) -> Config:
    """The toy's config with a fault and sections changed."""
    network = {"batchnorm": True, "fault": fault}
    values = {name: {**section, **changes.get(name, {})} for name, section in VALUES.items()}
    return validate_section(Config, {**values, "network": network}, "toy")
