"""The same faults in Lightning, with all the checks that it has switched on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests.faults.cells import Cell
from tests.faults.others import OtherLoop, OtherResult
from tests.faults.settings import FAULT_STEP, NUM_STEPS


class Module(lightning.LightningModule):
    """The loop's network and loss, with automatic optimization."""

    def __init__(self, loop: OtherLoop) -> None:
        super().__init__()
        self.network = loop.network
        self._loop = (loop,)  # in a tuple, so that its average is no submodule

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loop[0].loss(batch, batch_idx)
        self.log("train_loss", loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        return self._loop[0].optimizer


class Loop(Callback):
    """Brings the fault, moves the average, and watches the loss scale, as a user's own callback would."""

    def __init__(self, loop: OtherLoop) -> None:
        self._loop = loop
        self._scale = loop.scaler.get_scale()
        self.last_step, self.skipped_at = -1, -1

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._loop.begin(batch_idx)
        self._scale = self._loop.scaler.get_scale()
        self.last_step = batch_idx

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._loop.average.update_parameters(self._loop.network)
        if self._loop.scaler.get_scale() < self._scale and self.skipped_at < 0:
            self.skipped_at = batch_idx


class Batches(IterableDataset[Any]):
    """The batches of the training, in the order of the matrix."""

    def __init__(self, loop: OtherLoop) -> None:
        self._loop = loop

    def __iter__(self) -> Iterator[Any]:
        return map(self._loop.batch, range(NUM_STEPS))


def with_lightning(cell: Cell, root: Path) -> OtherResult:
    """Lightning's Trainer with anomaly detection, SpikeDetection and EarlyStopping(check_finite), at their defaults.

    Under fp16 with its MixedPrecision plugin and a GradScaler: Lightning gives bf16 to a CPU that asks for fp16.
    """
    loop = OtherLoop(cell)
    own, early = Loop(loop), EarlyStopping("train_loss", patience=NUM_STEPS, check_on_train_epoch_end=True)
    checks = [own, SpikeDetection(exclude_batches_path=str(root / f"{cell}.json")), early]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            detect_anomaly=True,
            callbacks=checks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=root,
            **_precision(cell, loop),
        )
        found_by, found_at = _fit(trainer, Module(loop), DataLoader(Batches(loop), batch_size=None))
    if not found_by and early.stopping_reason.value:
        found_by, found_at = "EarlyStopping", own.last_step
    if own.skipped_at >= 0 and (not found_by or own.skipped_at < found_at):
        found_by, found_at = "found_inf", own.skipped_at
    latency = found_at - FAULT_STEP if found_by else None
    return OtherResult(cell, found_by, latency, own.last_step, loop.state_after(own.last_step))


def _precision(cell: Cell, loop: OtherLoop) -> dict[str, Any]:
    if cell.precision == "fp16":
        return {"plugins": [MixedPrecision("16-mixed", "cpu", loop.scaler)]}
    return {"precision": {"fp32": "32-true", "bf16": "bf16-mixed"}[cell.precision]}


def _fit(trainer: Any, module: Module, loader: Any) -> tuple[str, int]:
    """(the check that ended the training, its step); what is no check is raised."""
    try:
        trainer.fit(module, loader)
    except RuntimeError as error:
        step = trainer.fit_loop.epoch_loop.batch_idx
        if type(error).__name__ == "TrainingSpikeException":
            return "SpikeDetection", step
        if "returned nan values" in str(error):
            return "detect_anomaly", step
        raise
    return "", -1
