"""hpcstab: which change stops a training from going NaN, and how sure are we?

``hpcstab.harden`` is the gate for a loop of your own, ``hpcstab.replay`` explains a step that it refused; they are
loaded when they are asked for, since they bring torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcstab.stability.loop.hardening import harden as harden
    from hpcstab.stability.loop.replay import replay as replay

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "harden":
        from hpcstab.stability.loop.hardening import harden

        return harden
    if name == "replay":
        from hpcstab.stability.loop.replay import replay

        return replay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
