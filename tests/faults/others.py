"""The same faults in trainings that are not ours: what their checks found, and the state that they left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpcstab.seeds import keyed_seed
from hpcstab.training.context import TrainingContext
from tests.faults.cells import Cell
from tests.faults.reference import Ended, make_optimizer, train_plainly
from tests.faults.run import expected_end
from tests.faults.settings import (
    FAULT_STEP,
    LOSS_SCALE,
    NUM_STEPS,
    OVERGROWN_SCALE,
    config_of,
    damage,
    is_of_the_scale,
    name_of_state,
)
from tests.faults.task import FaultTask, batch_indices

HEALTHY = ""
"""The kind of a cell without a fault."""


@dataclass(frozen=True)
class OtherResult:
    """What became of a cell elsewhere.

    Attributes:
        found_by: the check that found it; empty for none.
        host_latency: steps from that of the fault to the one in which the program knew; None: never.
        last_step: the last that was trained; a check can end the training.
        state: ``right`` (as ours has to be; of a training that was ended, as before the fault), ``weights right``
            (buffers, optimizer state or average are not), ``another`` (all finite), ``non-finite``.
    """

    cell: Cell
    found_by: str
    host_latency: int | None
    last_step: int
    state: str


class OtherLoop:
    """Network, optimizer, average and loss scale of a training that is not ours, and its fault.

    The scaler is there in fp32 and bf16 too, with a scale of 1: it skips what is not finite, which most such loops
    do without.
    """

    def __init__(self, cell: Cell) -> None:
        config = config_of(cell)
        self.cell, self.dtype = cell, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cell.precision)
        self.task = FaultTask(config, cell.kind, cell.site, -1 if cell.kind == HEALTHY else FAULT_STEP)
        torch.manual_seed(keyed_seed(0, "network"))
        self.network: nn.Module = self.task.network()
        self.optimizer = make_optimizer(self.network, config)
        self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.trainer.ema_decay or 0.0))
        self.average.n_averaged.fill_(1)  # it begins as the network does
        scale = LOSS_SCALE if cell.precision == "fp16" else 1.0
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
        self._batch_size = config.data.batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        items, indices = self.task.dataset("train"), batch_indices(step, self._batch_size)
        return items.inputs[indices], items.targets[indices]

    def loss(self, batch: Any, step: int) -> Tensor:
        context = TrainingContext(seed=0, step=step, epoch=0, device=torch.device("cpu"))
        terms = self.task.loss_terms(self.network, batch, context)
        return terms["mse"] + 0.1 * terms["size"]

    def begin(self, step: int) -> None:
        """Before a step: where a fault of the state or of the scale is due, it comes."""
        if step != FAULT_STEP or self.cell.kind == HEALTHY:
            return
        if is_of_the_scale(self.cell):
            self.scaler._scale.fill_(OVERGROWN_SCALE)  # type: ignore[union-attr]
        name = name_of_state(self.cell)
        if name is not None:
            damage(self._tensor(name), self.cell)

    def state_after(self, last_step: int) -> str:
        """See :attr:`OtherResult.state`; near and not bitwise, since another scale rounds otherwise."""
        if last_step < NUM_STEPS - 1:
            expected = _before_the_fault(self.cell._replace(kind="", site=""))
        else:
            expected = train_plainly(config_of(self.cell), 1) if self.cell.kind == HEALTHY else expected_end(self.cell)
        wanted, got = _tensors_of(expected), self._tensors()
        is_right = {name: torch.allclose(got[name], wanted[name], rtol=1e-3, atol=1e-6) for name in wanted}
        if all(is_right.values()):
            return "right"
        if not all(bool(tensor.isfinite().all()) for tensor in got.values()):
            return "non-finite"
        weights = [name for name, _ in self.network.named_parameters()]
        return "weights right" if all(is_right[name] for name in weights) else "another"

    def _tensor(self, name: str) -> Tensor:
        place, _, rest = name.partition(".")
        if place == "ema":
            return self.average.module.get_parameter(rest).data
        if place == "optimizer":
            parameter, _, key = rest.rpartition(".")
            return self.optimizer.state[self.network.get_parameter(parameter)][key]  # type: ignore[no-any-return]
        return self.network.get_buffer(name)

    def _tensors(self) -> dict[str, Tensor]:
        averages = list(self.average.module.parameters())
        return _tensors_of(Ended(self.network.state_dict(), self.optimizer.state_dict()["state"], averages, None))


def with_grad_scaler(cell: Cell) -> OtherResult:
    """The plain loop of PyTorch's documentation, with torch.amp.GradScaler."""
    loop = OtherLoop(cell)
    found_at = None
    for step in range(NUM_STEPS):
        loop.begin(step)
        loop.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=loop.dtype, enabled=loop.dtype is not None):
            loss = loop.loss(loop.batch(step), step)
        scale = loop.scaler.get_scale()
        loop.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        loop.scaler.step(loop.optimizer)
        loop.scaler.update()
        loop.average.update_parameters(loop.network)
        if loop.scaler.get_scale() < scale and found_at is None:
            found_at = step
    latency = None if found_at is None else found_at - FAULT_STEP
    return OtherResult(
        cell, "found_inf" if found_at is not None else "", latency, NUM_STEPS - 1, loop.state_after(NUM_STEPS - 1)
    )


@cache
def _before_the_fault(cell: Cell) -> Ended:
    config = config_of(cell)
    trainer = config.trainer.model_copy(update={"max_steps": FAULT_STEP})
    return train_plainly(config.model_copy(update={"trainer": trainer}), 1)


def _tensors_of(ended: Ended) -> dict[str, Tensor]:
    return {
        **ended.network,
        **{f"{key}.{name}": each for key, values in ended.optimizer.items() for name, each in values.items()},
        **{f"average.{index}": average for index, average in enumerate(ended.average)},
    }
