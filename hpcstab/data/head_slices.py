"""Slices of a head: grey images, the MR scan of pycortex' subject S1. One subject, so it shows no more than one head.

N = edge of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.formats.nifti import read_scan
from hpcstab.data.images import Images, Pixels, RealImages, shrink, split_in_order
from hpcstab.data.sources import SOURCES, provenance, read_member
from hpcstab.errors import DataError
from hpcstab.task import Split

Direction = Literal["axial", "coronal", "sagittal"]
_AXIS: dict[Direction, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
_EDGE = 256  # of the scan
_TISSUE = 20  # grey values above are head, not air
_MIN_TISSUE_PART = 0.05
_GAP = 8  # slices between the parts, 8 mm: neighbours are near-copies


def head_slices(size: int, train_fraction: float = 0.8, directions: Sequence[Direction] = ("axial",)) -> RealImages:
    """Slices (N, N) that show at least 5 % of head, in their order; the last slab of each direction is held out.

    Several directions give more images, but held-out slices then cross training slices: any two share a line of voxels.

    Args:
        size: N, a divisor of 256; smaller images are means of whole pixels.

    Raises:
        DataError: the scan was not fetched, is damaged, or ``size`` does not divide 256.
    """
    if size < 1 or _EDGE % size:
        raise DataError(
            f"head slices of {size} pixels a side were asked for; 256 divided by a whole number is possible"
        )
    source = SOURCES["pycortex"]
    scan = read_scan(read_member(source, "raw.nii.gz"), "raw.nii.gz").voxels
    parts = [_split(scan, direction, size, train_fraction) for direction in directions]
    facts: dict[str, int | float | str] = {
        "source": f"{', '.join(directions)} slices of one head, {source.release}",
        "split": f"by slab, {_GAP} slices between",
        "num_subjects": 1,
        **provenance([source]),
    }
    splits: tuple[Split, ...] = ("train", "validation")
    return RealImages({split: _join([part[split] for part in parts]) for split in splits}, facts)


def _split(scan: NDArray[np.uint8], direction: Direction, size: int, train_fraction: float) -> dict[Split, Images]:
    slices = [(f"{direction}_{number:03d}", pixels) for number, pixels in _slices(scan, direction, size)]
    num_train = round(train_fraction * (len(slices) - _GAP))
    if not 0 < num_train < len(slices) - _GAP:
        raise DataError(f"{len(slices)} {direction} slices cannot be split at {train_fraction} with {_GAP} between")
    return split_in_order(slices, num_train, num_train + _GAP)


def _slices(scan: NDArray[np.uint8], direction: Direction, size: int) -> list[tuple[int, Pixels]]:
    """(number, image) of the slices with enough head in them, the head upright or the face up."""
    stack = np.moveaxis(scan, _AXIS[direction], 0)
    shown = [
        n for n, pixels in enumerate(stack) if np.count_nonzero(pixels > _TISSUE) >= _MIN_TISSUE_PART * pixels.size
    ]
    return [(number, shrink(np.rot90(stack[number]), _EDGE // size)) for number in shown]


def _join(parts: list[Images]) -> Images:
    return Images(np.concatenate([part.pixels for part in parts]), [name for part in parts for name in part.ids])
