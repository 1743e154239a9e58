"""What saving needs from one save to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpcstab.checkpoint.background import BackgroundWriter
from hpcstab.checkpoint.snapshot import Snapshot


@dataclass
class Saver:
    """The copy of the state and the thread that writes it.

    Attributes:
        position: (step, update) of the save that is or was last under way.
        seconds: what the training waited for it: ``wait_s`` for the one before it, ``copy_s`` for the copy.
    """

    snapshot: Snapshot = field(default_factory=Snapshot)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    position: tuple[int, int] = (0, 0)
    seconds: Mapping[str, float] = field(default_factory=dict)
