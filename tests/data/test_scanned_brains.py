"""Real brains from stand-in archives of the real layout: where they lie, what their labels are, what they lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcstab.data.diffeomorphisms import centred_grid
from hpcstab.data.registration import anatomies
from hpcstab.data.scanned_brains import scanned_brain, tissue_of
from hpcstab.data.sources import SOURCES
from hpcstab.data.sources.cache import sha256_of
from hpcstab.errors import DataError
from tests.data.stand_ins import nifti

STEP_MM = 6.0  # of the stand-ins; the real ones have 1
SHAPE = (33, 39, 32)
MIDDLE = np.array([0.0, -18.0, 12.0])
AFFINE = np.column_stack([np.eye(3) * STEP_MM, MIDDLE - STEP_MM * (np.array(SHAPE) - 1) / 2])


def ball(radius_mm: float, offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:  # type: ignore[type-arg]
    """A ball about the middle of MNI space's brain."""
    places = centred_grid(SHAPE) * STEP_MM - np.array(offset_mm)
    return (np.linalg.norm(places, axis=1) < radius_mm).reshape(SHAPE)


def brain_files() -> dict[str, dict[str, np.ndarray]]:  # type: ignore[type-arg]
    """By package: a skull around a brain of a white and a grey ball; a brain of three classes with two regions."""
    grey, white, skull = ball(70.0) & ~ball(40.0), ball(40.0), ball(90.0) & ~ball(80.0)
    t1 = 200 * white + 120 * grey + 250 * skull
    colin = 40 * (ball(60.0) & ~ball(55.0)) + 80 * (ball(55.0) & ~ball(35.0)) + 130 * ball(35.0)
    aal = 5 * ball(30.0, (20.0, 0.0, 0.0)) + 0
    aal[ball(20.0, (-30.0, 0.0, 0.0))] = 116
    prefix, suffix = "mni_icbm152_", "_tal_nlin_sym_09a_converted.nii.gz"
    return {
        "nilearn": {f"{prefix}t1{suffix}": t1, f"{prefix}gm{suffix}": 255 * grey, f"{prefix}wm{suffix}": 255 * white},
        "mricron-data": {"ch2bet.nii.gz": colin, "aal.nii.gz": aal},
    }


def put_in_cache(monkeypatch: pytest.MonkeyPatch, folder: Path, packages: tuple[str, ...]) -> None:
    """The stand-ins as if they had been fetched, pinned by their own hashes."""
    monkeypatch.setenv("HPCSTAB_DATA", str(folder))
    for package in packages:
        files = {name: nifti(voxels, AFFINE) for name, voxels in brain_files()[package].items()}
        members = {path: sha256_of(files[Path(path).name]) for path in SOURCES[package].members}
        source = replace(SOURCES[package], members=members)
        monkeypatch.setitem(SOURCES, package, source)
        (folder / source.folder).mkdir()
        for name, content in files.items():
            (folder / source.folder / name).write_bytes(content)


@pytest.fixture
def _both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_in_cache(monkeypatch, tmp_path, ("nilearn", "mricron-data"))


@pytest.mark.usefixtures("_both")
def test_mni152_is_stripped_of_its_skull_and_has_two_tissues() -> None:
    brain = scanned_brain("mni152", edge=32)  # 6 mm
    volume = anatomies(brain, brain, 32).fixed
    middle = volume.labels[16, 16, 16], volume.intensities[16, 16, 16]
    assert middle == (2, pytest.approx(200.0, abs=1.0))
    assert volume.labels[16, 16 + 9, 16] == 1
    assert volume.intensities[16, 16 + 14, 16] == 0.0, "the skull at 84 mm"
    assert set(np.unique(volume.labels)) == {0, 1, 2}


@pytest.mark.usefixtures("_both")
def test_colin27_has_its_regions_where_they_are_and_tissue_on_request() -> None:
    brain = scanned_brain("colin27", edge=32)
    volume = anatomies(brain, brain, 32).fixed
    assert (volume.labels[16 + 3, 16, 16], volume.labels[16 - 5, 16, 16]) == (5, 116)
    tissue = anatomies(*[scanned_brain("colin27", edge=32, tissue=True)] * 2, 32).fixed
    assert (tissue.labels[16, 16, 16], tissue.labels[16, 16 + 7, 16], tissue.labels[16, 16 + 9, 16]) == (2, 1, 0)


def test_tissue_is_three_classes_of_what_is_not_0() -> None:
    generator = np.random.default_rng(0)
    means = np.array([0, 40, 80, 130])
    true = generator.integers(0, 4, (12, 12, 12))
    noisy = means[true] + (true > 0) * generator.normal(0, 4, true.shape)
    np.testing.assert_array_equal(tissue_of(noisy), np.array([0, 0, 1, 2])[true])


def test_what_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_in_cache(monkeypatch, tmp_path, ("nilearn",))
    scanned_brain("mni152", edge=16)
    with pytest.raises(DataError, match="run `hpcstab data fetch mricron-data`"):
        scanned_brain("colin27", edge=16)


@pytest.mark.usefixtures("_both")
def test_labels_on_another_grid_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = SOURCES["mricron-data"]
    content = nifti(np.zeros((5, 5, 5)), AFFINE)
    path = next(path for path in source.members if path.endswith("aal.nii.gz"))
    members = {**source.members, path: sha256_of(content)}
    monkeypatch.setitem(SOURCES, "mricron-data", replace(source, members=members))
    (tmp_path / source.folder / "aal.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match="its map of AAL labels has 5 x 5 x 5 voxels, Colin27 has 33 x 39 x 32"):
        scanned_brain("colin27", edge=16)
