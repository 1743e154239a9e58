"""fp16 head-room: a warning before gradients overflow, not after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcstab.stability.guards.guards import Finding, Update, Verdict

LARGEST_FP16 = 65504.0
LARGEST_GRADIENT, LOSS_SCALE = "largest_scaled_gradient", "loss_scale"
"""Readings of a health check under fp16; without a loss scale its reading is 1."""


class HeadroomGuard:
    """The largest gradient, loss scale included, against the largest fp16 number; and a loss scale that only falls.

    Args:
        max_share: of 65504 that a gradient may take up.
        max_falls: checks in a row at which the scale may have fallen.
        verdict: what it asks for.
    """

    name = "headroom"

    def __init__(self, max_share: float, max_falls: int, verdict: Verdict) -> None:
        self._max_share = max_share
        self._max_falls = max_falls
        self._verdict = verdict
        self._scale: float | None = None
        self._falls = 0

    def see(self, update: Update) -> Finding | None:
        if LARGEST_GRADIENT not in update.readings:
            return None
        share = update.readings[LARGEST_GRADIENT] / LARGEST_FP16
        scale = update.readings[LOSS_SCALE]
        self._falls = self._falls + 1 if self._scale is not None and scale < self._scale else 0
        self._scale = scale
        # not `>`: a NaN has no head-room
        if share <= self._max_share and self._falls <= self._max_falls:
            return None
        what = "loss_scale_falls" if share <= self._max_share else "gradient"
        data = {"what": what, "share_of_fp16": share, "loss_scale": scale, "num_falls": self._falls}
        return Finding(self.name, self._verdict, data)

    def restart(self) -> None:
        self._scale, self._falls = None, 0

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self._scale, "falls": self._falls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scale, self._falls = state["scale"], state["falls"]
