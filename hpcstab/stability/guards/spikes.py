"""Spikes: how large a loss or a gradient norm may be, judged by the updates before it.

The threshold stands on the device, so that a spike is refused in its own step. A refused step is no applied update, so
spikes never enter the statistics; median and median deviation would bear a few all the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

NEVER = math.inf
"""No threshold: nothing is refused."""
_NORMAL = 1.4826  # the median absolute deviation of a normal distribution is 1 / 1.4826 of its standard deviation


def spike_threshold(values: Sequence[float], deviations: float, ratio: float) -> float:
    """Median plus the larger of ``deviations`` robust standard deviations and ``ratio`` - 1 medians.

    Non-finite values are left out. Values that are all zero, or none at all, set no threshold.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return NEVER
    middle = median(finite)
    spread = _NORMAL * median(abs(value - middle) for value in finite)
    allowance = max(deviations * spread, (ratio - 1.0) * abs(middle))
    return middle + allowance if allowance > 0 else NEVER


class SpikeGuard:
    """The threshold of one figure over the last ``window`` applied updates.

    Args:
        window: so many updates are looked at.
        min_updates: below it there is no threshold (the warm-up of the statistics).
        deviations: robust standard deviations above the median that are still allowed.
        ratio: multiples of the median that are allowed in any case.
        refresh_every: the threshold changes after so many updates; between them it costs nothing.
    """

    def __init__(self, window: int, min_updates: int, deviations: float, ratio: float, refresh_every: int) -> None:
        self._window = window
        self._min_updates = min_updates
        self._deviations = deviations
        self._ratio = ratio
        self._refresh_every = refresh_every
        # an update that runs again still needs the window that it had
        self._values: deque[tuple[int, float]] = deque(maxlen=window + 2 * refresh_every + 8)
        self._count = 0
        self._rests_on = (-1, -1, -1)  # first update, last update, step of the objective
        self._threshold = NEVER

    def add(self, value: float, step: int) -> None:
        """The figure of the next applied update, which is that of ``step``."""
        self._values.append((step, value))
        self._count += 1

    def threshold(self, end: int, since: int = 0) -> float:
        """From the updates with an index below ``end``, rounded down to the last refreshment.

        Those of steps before ``since`` are left out: they had another objective.
        """
        end = end // self._refresh_every * self._refresh_every
        oldest = self._count - len(self._values)
        first = max(oldest, end - self._window)
        if self._rests_on != (first, end, since):
            known = list(self._values)[first - oldest : max(0, end - oldest)]
            values = [value for step, value in known if step >= since]
            self._rests_on = (first, end, since)
            self._threshold = NEVER
            if len(values) >= self._min_updates:
                self._threshold = spike_threshold(values, self._deviations, self._ratio)
        return self._threshold

    def restart(self) -> None:
        """Forget the values; the warm-up begins anew."""
        self._values.clear()
        self._rests_on = (-1, -1, -1)

    def state_dict(self) -> dict[str, Any]:
        return {"values": [list(known) for known in self._values], "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.restart()
        self._values.extend((step, value) for step, value in state["values"])
        self._count = state["count"]
