"""A user's folder of scans and labels: what can be used is, what cannot is named and counted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcstab.data.registration import anatomies
from hpcstab.data.registration_folder import read_subjects
from hpcstab.errors import DataError

SHAPE = (12, 14, 10)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def image(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, 100, SHAPE).astype(np.float32)


def regions(seed: int) -> NDArray[np.int16]:
    labels = np.zeros(SHAPE, np.int16)
    labels[2:8, 2 + seed : 8 + seed, 2:8] = 1
    labels[4:6, 4:6, 4:6] = 2
    return labels


def write(
    folder: Path, part: str, name: str, voxels: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE
) -> Path:
    path = folder / part / f"{name}.nii.gz"
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(4):
        write(tmp_path, "imagesTr", f"OASIS_{seed:04d}", image(seed))
        write(tmp_path, "labelsTr", f"OASIS_{seed:04d}", regions(seed))
    return tmp_path


def test_subjects_are_seen_as_cubes_around_the_whole_scan(folder: Path) -> None:
    read = read_subjects(folder, edge=7)  # 14 voxels of 2 mm: steps of 4 mm
    assert [subject.name for subject in read.subjects] == [f"OASIS_{seed:04d}" for seed in range(4)]
    assert read.findings == ()
    pair = anatomies(read.subjects[0], read.subjects[1], 7)
    assert pair.fixed.intensities.shape == (7, 7, 7)
    assert pair.displacement is None
    assert set(np.unique(pair.fixed.labels)) == {0, 1, 2}
    fine = anatomies(read_subjects(folder, edge=14).subjects[0], read.subjects[1], 14).fixed
    np.testing.assert_array_equal(fine.labels[1:13, :, 2:12], regions(0), "14 voxels of 2 mm: every voxel is one")


def bad_grid(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0)[:-1])
    write(folder, "imagesTr", "x", image(9))


def bad_spacing(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0), np.diag([3.0, 2.0, 2.0, 1.0]))
    write(folder, "imagesTr", "x", image(9), np.diag([3.0, 2.0, 2.0, 1.0]))


def only_labels(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0))


def only_an_image(folder: Path) -> None:
    write(folder, "imagesTr", "x", image(9))


def with_nan(folder: Path) -> None:
    voxels = image(9)
    voxels[0, 0, :3] = np.nan
    write(folder, "labelsTr", "x", regions(0))
    write(folder, "imagesTr", "x", voxels)


def constant(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0))
    write(folder, "imagesTr", "x", np.full(SHAPE, 5.0, np.float32))


def truncated(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0))
    path = write(folder, "imagesTr", "x", image(9))
    path.write_bytes(path.read_bytes()[:-200])


def fractional(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0).astype(np.float32) * 0.5)
    write(folder, "imagesTr", "x", image(9))


def too_large(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0) * 1000)
    write(folder, "imagesTr", "x", image(9))


def of_another_scheme(folder: Path) -> None:
    write(folder, "labelsTr", "x", regions(0) * 17)
    write(folder, "imagesTr", "x", image(9))


@pytest.mark.parametrize(
    ("spoil", "kind", "what"),
    [
        (bad_grid, "grid", r"x \(its map of labels has 11 x 14 x 10 voxels, its image has 12 x 14 x 10"),
        (
            bad_spacing,
            "grid",
            r"x \(it \(spacing 3 x 2 x 2 mm\) lies elsewhere than OASIS_0000 \(spacing 2 x 2 x 2 mm\)",
        ),
        (only_labels, "missing", r"x \(none in imagesTr\)"),
        (only_an_image, "missing", r"x \(none in labelsTr\)"),
        (with_nan, "non_finite", r"x \(3 voxels\)"),
        (constant, "constant", r"x \(5 everywhere\)"),
        (truncated, "unreadable", r"x \(x.nii.gz: cannot be decompressed"),
        (fractional, "labels", r"x \(not whole numbers\)"),
        (too_large, "labels", r"x \(0 to 2000\)"),
        (of_another_scheme, "labels", r"x \(none of its 2 labels stands in another subject\)"),
    ],
)
def test_what_cannot_be_used_is_named_and_counted(
    folder: Path, spoil: Callable[[Path], None], kind: str, what: str
) -> None:
    spoil(folder)
    read = read_subjects(folder, edge=8)
    assert len(read.subjects) == 4
    (finding,) = read.findings
    assert (finding.kind, finding.count) == (kind, 1)
    assert "1 of 5 subjects" in finding.message
    assert re.search(what, finding.message)


def test_too_few_subjects_or_none(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"'.*nowhere/imagesTr' cannot be read: .*; data.folder must hold imagesTr/ and"
    ):
        read_subjects(folder / "nowhere", edge=8)
    (folder / "labelsTr" / "OASIS_0003.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"3 of 4 subjects can be used; four are needed, .* have no partner of the same name"
    ):
        read_subjects(folder, edge=8)
