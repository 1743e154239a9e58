"""Number formats of a training, and where it runs."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hpcstab.config.common import PrecisionConfig


def pick_device() -> torch.device:
    """CUDA where a GPU answers, else the CPU. CUDA_VISIBLE_DEVICES alone is no proof of a GPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def device_facts(device: torch.device) -> dict[str, Any]:
    """What a run trains on, as its train_start event says it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "device_name": name, "num_threads": torch.get_num_threads()}


def set_tf32(config: PrecisionConfig) -> None:
    """Allow or forbid TF32 in matrix products and convolutions of CUDA."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32


def autocast(config: PrecisionConfig, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 or fp16 autocast of forward passes, or nothing for fp32."""
    if config.dtype == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if config.dtype == "bf16" else torch.float16)
