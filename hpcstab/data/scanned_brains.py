"""Real brains: the MNI152 average and the single subject Colin27, in one space, skull-stripped, with labels.

No package gives two subjects under one label scheme. So each brain has labels of its own for known answers (MNI152:
grey and white matter; Colin27: the 116 regions of the AAL atlas), and both have tissue for the pair of the two.
Places are voxels of a cube that holds a whole brain, from its middle; intensities are as stored, 0 outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.diffeomorphisms import Points
from hpcstab.data.formats.nifti import read_scan
from hpcstab.data.registration import Intensities, Labels
from hpcstab.data.scans import Scan, check_same_grid
from hpcstab.data.sources import SOURCES, read_member

BrainName = Literal["mni152", "colin27"]
BRAIN_PACKAGES: Mapping[BrainName, str] = {"mni152": "nilearn", "colin27": "mricron-data"}
_FIELD_OF_VIEW_MM = 192.0
_MIDDLE_MM = np.array([0.0, -18.0, 12.0])  # of a brain in MNI space
_SMOOTHING = 0.4  # of a voxel of the cube: the spread of the blur before points of the scan are taken
_HALF = 127  # of the probability maps, 0 to 255
_GREY, _WHITE = 1, 2
TISSUES: Mapping[int, str] = {_GREY: "grey matter", _WHITE: "white matter"}
"""Names of the labels of tissue."""
_NUM_CLASSES, _NUM_ITERATIONS = 3, 20  # fluid, grey, white matter


@dataclass(frozen=True)
class ScannedBrain:
    """``image`` and ``labels`` on one grid; ``spacing_mm``: edge of the voxels in which places are given."""

    image: Scan
    labels: Scan
    spacing_mm: float

    def look_up(self, points: Points) -> tuple[Intensities, Labels]:
        """Intensities between voxels linearly, labels of the nearest voxel."""
        from scipy.ndimage import map_coordinates

        places_mm = _MIDDLE_MM + points * self.spacing_mm
        to_voxels = np.linalg.inv(self.image.affine)
        places = (places_mm @ to_voxels[:3, :3].T + to_voxels[:3, 3]).T
        intensities = map_coordinates(self.image.voxels, places, order=1, output=np.float32)
        return intensities, map_coordinates(self.labels.voxels, places, order=0, output=np.uint8)


def scanned_brain(name: BrainName, edge: int, tissue: bool = False) -> ScannedBrain:
    """The brain for cubes of ``edge`` voxels.

    Args:
        tissue: grey and white matter as labels 1 and 2 for both, instead of each brain's own labels.

    Raises:
        DataError: its source was not fetched or is damaged.
    """
    from scipy.ndimage import gaussian_filter

    image, labels = _mni152() if name == "mni152" else _colin27(tissue)
    spacing_mm = _FIELD_OF_VIEW_MM / edge
    blur = [_SMOOTHING * spacing_mm / step_mm for step_mm in image.spacing_mm]
    smooth = gaussian_filter(image.voxels.astype(np.float32), blur)
    return ScannedBrain(Scan(smooth, image.affine), labels, spacing_mm)


def tissue_of(intensities: NDArray[Any]) -> Labels:
    """Grey matter 1, white matter 2 by clustering a skull-stripped T1 scan into three classes; an approximation."""
    inside = intensities > 0
    values = intensities[inside].astype(np.float64)
    centres = np.quantile(values, (np.arange(_NUM_CLASSES) + 0.5) / _NUM_CLASSES)
    for _ in range(_NUM_ITERATIONS):
        classes = np.digitize(values, (centres[1:] + centres[:-1]) / 2.0)
        centres = np.array([values[classes == number].mean() for number in range(_NUM_CLASSES)])
    labels = np.zeros(intensities.shape, np.uint8)
    labels[inside] = classes  # 0 is fluid, counted as background
    return labels


def _mni152() -> tuple[Scan, Scan]:
    from scipy.ndimage import binary_closing, binary_fill_holes

    image, grey, white = (
        _read("mni152", f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz") for kind in ("t1", "gm", "wm")
    )
    for name, tissue in (("grey matter", grey), ("white matter", white)):
        check_same_grid(image, tissue, ("MNI152", f"its {name}"))
    labels = np.where(grey.voxels > _HALF, _GREY, np.where(white.voxels > _HALF, _WHITE, 0)).astype(np.uint8)
    brain = binary_fill_holes(binary_closing(labels > 0, iterations=3))
    return Scan(np.where(brain, image.voxels, 0), image.affine), Scan(labels, image.affine)


def _colin27(tissue: bool) -> tuple[Scan, Scan]:
    image, regions = _read("colin27", "ch2bet.nii.gz"), _read("colin27", "aal.nii.gz")
    check_same_grid(image, regions, ("Colin27", "its map of AAL labels"))
    return image, Scan(tissue_of(image.voxels), image.affine) if tissue else regions


def _read(name: BrainName, file: str) -> Scan:
    return read_scan(read_member(SOURCES[BRAIN_PACKAGES[name]], file), file)
