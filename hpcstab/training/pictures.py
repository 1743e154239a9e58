"""Sample pictures of a network, as PNG files of the run."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import nn

from hpcstab.rundir import RunDir, write_bytes
from hpcstab.stability.modes import modes_kept
from hpcstab.task import StepContext, Task


def save_samples(run: RunDir, task: Task, network: nn.Module, context: StepContext) -> str:
    """Write ``samples/step_<step>_<name>.png`` for each picture the task makes.

    Returns:
        Why there are none, in one line: a task that cannot draw costs no training that has reached its end.
    """
    with torch.no_grad(), modes_kept(network):
        network.eval()
        try:
            pictures = task.samples(network, context)
        except Exception as error:
            lines = str(error).splitlines()
            return f"{type(error).__name__}: {lines[0] if lines else ''}"
    for picture in pictures:
        content = io.BytesIO()
        Image.fromarray(picture.pixels).save(content, format="PNG")
        write_bytes(run.samples / f"step_{context.step:08d}_{picture.name}.png", content.getvalue())
    return ""
