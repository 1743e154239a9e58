"""TensorBoard beside our own files, where the config asks for it and the package is there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from hpcstab.errors import RunError
from hpcstab.rundir import RunDir

ROW_SCALARS = ("loss", "grad_norm", "lr")


class TensorBoard:
    """Writes scalars, or nothing; ``absent`` is True where the package was wanted and is not there.

    Raises:
        RunError: ``required`` and the package is not installed.
    """

    def __init__(self, mode: Literal["off", "optional", "required"], run: RunDir) -> None:
        self._writer: Any = None
        self.absent = False
        if mode == "off":
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            if mode == "required":
                raise RunError(
                    "trainer.tensorboard is 'required' and tensorboard is not installed: pip install tensorboard,"
                    " or set it to 'optional'"
                ) from None
            self.absent = True
            return
        self._writer = SummaryWriter(str(run.tensorboard))

    def row(self, step: int, row: Mapping[str, Any]) -> None:
        """Scalars of one training step; a non-finite value is left out, metrics.csv has it."""
        if self._writer is not None:
            self._write(step, {name: row[name] for name in ROW_SCALARS})

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is not None:
            self._write(step, {f"validation/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)
