"""How sizes and durations are written."""

from __future__ import annotations

import math


def size(num_bytes: float) -> str:
    """``512 B``, ``61.2 kB``, ``1.4 GB``."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    power = min(4, int(math.log10(num_bytes) / 3))
    return f"{num_bytes / 1000**power:.1f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h`` or ``2.1 d``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 100 * 3600 else f"{seconds / 86400:.1f} d"
