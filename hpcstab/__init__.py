"""hpcstab: which change stops a training from going NaN, and how sure are we?

``hpcstab.harden`` is the gate for a loop of your own; it is loaded when it is asked for, since it brings torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcstab.stability.hardening import harden as harden

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "harden":
        from hpcstab.stability.hardening import harden

        return harden
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
