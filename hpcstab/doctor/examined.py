"""What the doctor has seen of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from hpcstab.doctor.contents import Contents
from hpcstab.doctor.findings import Diagnosis
from hpcstab.doctor.parts import Layout


@dataclass(frozen=True)
class Examined:
    """A diagnosis with what it was made from: for the repair, and for a comparison with a sibling."""

    contents: Contents
    layout: Layout
    diagnosis: Diagnosis
