"""The registration network: a shared encoder, a hyper-network, the liquid cell, and the flow of its velocity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hpcstab.models.liquidreg.config import Network
from hpcstab.models.liquidreg.liquid_cell import LiquidCell
from hpcstab.models.liquidreg.warping import exponential, voxel_grid, warp
from hpcstab.stability.numerics import fp32_island

_GAIN = 0.1  # of the hyper-network's initial weights, and of its output inside tanh


@dataclass(frozen=True)
class Registration:
    """``velocity`` and ``displacement`` (B, 3, D, H, W) in voxels, ``warped`` (B, 1, D, H, W), ``weights`` (B, P)."""

    velocity: Tensor
    displacement: Tensor
    warped: Tensor
    weights: Tensor


class HyperNetwork(nn.Sequential):
    """A code (B, L) -> the weights of the liquid cell (B, P), each in (-1, 1) and near 0 at the start."""

    def __init__(self, code_size: int, hidden_size: int, num_weights: int) -> None:
        super().__init__(
            nn.Linear(code_size, hidden_size),
            nn.LayerNorm(hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, num_weights),
        )
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, gain=_GAIN)
                nn.init.zeros_(layer.bias)

    def forward(self, code: Tensor) -> Tensor:
        return torch.tanh(_GAIN * super().forward(code))  # type: ignore[no-untyped-call]


class LiquidRegistration(nn.Module):
    """A pair of volumes in, the displacement that brings ``moving`` onto ``fixed`` out.

    The encoder sees fixed and moving volumes alike; their mean features, side by side, are the code of the pair.
    ``keys.weights``: ``functional`` runs the cell with the hyper-network's output. ``detached`` copies it into
    parameters of the cell's own, and of the first pair alone, as the code of the write-up did (``.data``): encoder and
    hyper-network get no gradient, and what the cell's parameters learn is overwritten by the next forward pass.

    Forward: fixed and moving (B, 1, D, H, W), each edge at least 16 -> :class:`Registration`. Velocity and flow are
    fp32 whatever the rest runs in, since positions of half precision are wrong by whole voxels.
    """

    def __init__(self, keys: Network) -> None:
        super().__init__()
        self._keys = keys
        self._cell = LiquidCell(keys.num_units, keys.num_steps, keys.solver)
        self.encoder = nn.Sequential(
            *(_stage(*channels, keys.norm) for channels in pairwise((1, *keys.encoder_channels)))
        )
        code_size = 2 * keys.encoder_channels[-1]
        self.hyper_network = HyperNetwork(code_size, keys.hidden_size, self._cell.num_weights)
        self.cell_weights = nn.Parameter(torch.zeros(self._cell.num_weights)) if keys.weights == "detached" else None

    def forward(self, fixed: Tensor, moving: Tensor) -> Registration:
        weights = self._weights(self._code(fixed, moving))
        return fp32_island(self._register)(weights, moving)

    def _code(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """(B, 2 C): the mean features of both volumes."""
        features = self.encoder(torch.cat([fixed, moving])).mean(dim=(2, 3, 4))
        return torch.cat(features.chunk(2), dim=1)

    def _weights(self, code: Tensor) -> Tensor:
        written: Tensor = self.hyper_network(code)
        if self.cell_weights is None:
            return written
        with torch.no_grad():
            self.cell_weights.copy_(written[0])
        return self.cell_weights.expand(len(written), -1)

    def _register(self, weights: Tensor, moving: Tensor) -> Registration:
        shape = moving.shape[2:]
        velocity = self._keys.velocity_scale * self._cell(weights, positions(shape, weights))
        velocity = velocity.reshape(-1, 3, *shape)
        displacement = exponential(velocity, self._keys.num_squarings, self._keys.grid_limit)
        warped = warp(moving, displacement, self._keys.grid_limit)
        return Registration(velocity, displacement, warped, weights)


def positions(shape: Sequence[int], like: Tensor) -> Tensor:
    """Coordinates of all voxels, (D H W, 3), -1 and 1 at the centres of the outermost ones."""
    last = like.new_tensor([max(size - 1, 1) for size in shape])
    return voxel_grid(shape, like).flatten(1).T * (2.0 / last) - 1.0


def _stage(num_in: int, num_out: int, norm: str) -> nn.Sequential:
    normalize = nn.BatchNorm3d(num_out) if norm == "batch" else nn.GroupNorm(1, num_out)
    return nn.Sequential(nn.Conv3d(num_in, num_out, 3, stride=2, padding=1), normalize, nn.ReLU(inplace=True))
