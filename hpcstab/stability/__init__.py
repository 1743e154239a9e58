"""Numerical stability: gate, guards, provenance, and numerics that models may use.

``from hpcstab.stability import harden`` is the gate for a loop of your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcstab.stability.loop.hardening import Hardened as Hardened
    from hpcstab.stability.loop.hardening import harden as harden


def __getattr__(name: str) -> Any:
    if name in ("harden", "Hardened"):  # models import numerics from here and nothing of this
        from hpcstab.stability.loop import hardening

        return getattr(hardening, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
