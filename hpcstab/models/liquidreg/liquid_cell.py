"""The liquid cell: a recurrent unit at every voxel, driven by its coordinates; its weights come from outside.

A simplification of the liquid time-constant network (Hasani et al., AAAI 2021, arXiv 2006.04439), as in the
write-up: dh/dt = -h / tau + sigmoid(W h + U x + b), tau from h and x as well, h(0) = 0, over one unit of time. The
published one lets the same sigmoid pull h towards a learned state as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

_TAU_MIN, _TAU_MAX = 0.1, 10.0
Solver = Literal["euler", "cfc"]


@dataclass(frozen=True)
class LiquidCell:
    """``num_units`` states a voxel; holds no parameter itself.

    ``solver``: ``euler`` takes ``num_steps`` explicit steps, which is unstable where a step exceeds twice tau;
    ``cfc`` follows, in ``num_steps`` intervals, the exact solution for tau and drive held constant within each, which
    no step can make unstable: the idea of the closed-form network (Hasani et al., Nature Machine Intelligence 2022).
    """

    num_units: int
    num_steps: int
    solver: Solver

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of W, U, b; W_tau, U_tau, b_tau; W_out, b_out."""
        units = self.num_units
        one = ((units, units), (units, 3), (units,))
        return (*one, *one, (3, units), (3,))

    @property
    def num_weights(self) -> int:
        """8,899 with 64 units."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def __call__(self, weights: Tensor, positions: Tensor) -> Tensor:
        """weights (B, P), one set a pair; positions (N, 3) in [-1, 1] -> (B, 3, N), in (-1, 1)."""
        parts = torch.split(weights, [torch.Size(shape).numel() for shape in self.shapes], dim=1)
        w, u, b, w_tau, u_tau, b_tau, w_out, b_out = (
            part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)
        )
        recurrent = torch.cat([w, w_tau], dim=1)  # (B, 2 units, units): one product for both
        inputs = torch.cat([u, u_tau], dim=1) @ positions.T + torch.cat([b, b_tau], dim=1)[..., None]
        state = inputs.new_zeros(len(weights), self.num_units, len(positions))
        for _ in range(self.num_steps):
            drive, pace = (recurrent @ state + inputs).chunk(2, dim=1)
            tau = _TAU_MIN + (_TAU_MAX - _TAU_MIN) * functional.softplus(pace)
            state = self._advance(state, drive.sigmoid(), tau)
        return torch.tanh(w_out @ state + b_out[..., None])

    def _advance(self, state: Tensor, drive: Tensor, tau: Tensor) -> Tensor:
        dt = 1.0 / self.num_steps
        if self.solver == "euler":
            return state + dt * (drive - state / tau)
        rest = drive * tau  # where -h / tau + drive is 0
        return rest + (state - rest) * torch.exp(-dt / tau)
