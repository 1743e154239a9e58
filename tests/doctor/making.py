"""Checkpoints as trainings leave them, small, and what poisons them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Two normalised convolutions (one channels-last), a tied pair of layers, a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        )
        self.encoder.to(memory_format=torch.channels_last)
        self.head, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.head.weight
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 12, 12) -> (B, 8)."""
        return self.tied(self.head(self.encoder(images).mean((2, 3))))


def trained(seed: int = 0, steps: int = 3) -> dict[str, Any]:
    """A training's whole state as many loops save it: model, average, optimizer, scaler, and where it stood."""
    torch.manual_seed(seed)
    network = Network()
    average = torch.optim.swa_utils.AveragedModel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, amsgrad=True)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 12, 12)).square().mean().backward()
        optimizer.step()
        average.update_parameters(network)
    return {
        "model": network.state_dict(),
        "model_ema": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {
            "scale": 1024.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 2000,
            "_growth_tracker": 3,
        },
        "best_score": torch.tensor(float("inf")),
        "epoch": 1,
        "step": steps,
    }


def tensors_of(value: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors of nested containers, by dotted path."""
    if isinstance(value, Tensor):
        return {path: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    found: dict[str, Tensor] = {}
    for key, item in items:
        found |= tensors_of(item, f"{path}.{key}" if path else str(key))
    return found


def saved(folder: Path, state: Any, name: str = "model.pt", **options: Any) -> Path:
    torch.save(state, folder / name, **options)
    return folder / name
