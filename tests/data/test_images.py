"""Images of folders and of pinned sources: what is wrong with one is named and counted, and splits share nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcstab.data.head_slices import head_slices
from hpcstab.data.images import read_folder, shrink
from hpcstab.data.real_photos import real_photos
from hpcstab.data.sources import SOURCES
from hpcstab.errors import DataError
from tests.data.stand_ins import fetched, nifti, picture, wavessm_files

GENERATOR = np.random.default_rng(0)


def grey(size: int = 8) -> np.ndarray:  # type: ignore[type-arg]
    return GENERATOR.integers(0, 255, (size, size), dtype=np.uint8)


def colour(height: int, width: int) -> np.ndarray:  # type: ignore[type-arg]
    return GENERATOR.integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_every_kind_of_bad_image_is_named_counted_and_left_out(tmp_path: Path) -> None:
    good = [grey() for _ in range(5)]
    for index, pixels in enumerate(good[:4]):
        (tmp_path / f"good_{index}.png").write_bytes(picture(pixels))
    np.save(tmp_path / "good_4.npy", good[4].astype(np.float64) / 255.0)
    (tmp_path / "corrupt.png").write_bytes(picture(grey())[:60])
    (tmp_path / "corrupt.jpg").write_bytes(b"no picture")
    (tmp_path / "size.png").write_bytes(picture(grey(9)))
    (tmp_path / "channels.png").write_bytes(picture(colour(8, 8)))
    Image.fromarray(grey()).convert("RGBA").save(tmp_path / "alpha.png")
    (tmp_path / "dtype.png").write_bytes(picture(grey().astype(np.uint16) * 200))
    np.save(tmp_path / "dtype.npy", np.zeros((8, 8), np.int32))
    np.save(tmp_path / "nan.npy", np.where(np.eye(8) > 0, np.nan, 0.5))
    np.save(tmp_path / "range.npy", np.linspace(0, 2, 64).reshape(8, 8))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    (tmp_path / "constant.png").write_bytes(picture(np.full((8, 8), 7, np.uint8)))
    (tmp_path / "notes.txt").write_text("not an image")

    read = read_folder(tmp_path, 8, 1, 0.6)
    assert {finding.kind: finding.count for finding in read.findings} == {
        "shape": 3,
        "constant": 1,
        "unreadable": 3,
        "dtype": 2,
        "non_finite": 1,
        "range": 1,
    }
    messages = " ".join(finding.message for finding in read.findings)
    assert "1 of 16 images are constant, left out: constant.png (7 everywhere)" in messages
    assert "channels.png ((8, 8, 3) instead of (8, 8))" in messages
    assert "nan.npy (8 values are NaN or infinite)" in messages
    assert "corrupt.jpg (no image of a known format)" in messages and " at 0x" not in messages
    assert read.facts["num_left_out"] == 11
    train, validation = read.splits["train"], read.splits["validation"]
    assert train.ids == ["good_0.png", "good_1.png", "good_2.png"]
    assert validation.ids == ["good_3.png", "good_4.npy"]
    np.testing.assert_array_equal(np.concatenate([train.pixels, validation.pixels]), np.stack(good))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"holds no image; read are \.png"),
        (["a.png"], "1 of 1 images can be used: two are needed"),
        (["a.png", "b.txt"], "1 of 1 images"),
    ],
)
def test_a_folder_without_enough_images_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(picture(grey()))
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, 8, 1, 0.8)


def test_a_folder_of_bad_images_alone_says_what_is_wrong_with_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image folder '.*none' cannot be read: No such file"):
        read_folder(tmp_path / "none", 8, 1, 0.8)
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"0 of 5 images can be used: 5 of 5 images cannot be read.*2\.png .*\.\.\."):
        read_folder(tmp_path, 8, 3, 0.8)


def test_shrink_is_the_mean_of_whole_squares() -> None:
    pixels = np.arange(25, dtype=np.uint8).reshape(5, 5)
    np.testing.assert_array_equal(shrink(pixels, 2), [[3, 5], [13, 15]])
    assert shrink(colour(6, 4), 2).shape == (3, 2, 3)


def test_head_slices_are_split_by_slab_with_a_gap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cube of tissue whose grey value is the height: no slice of the 8 before the held-out slab is trained on."""
    scan = np.zeros((256, 256, 256), np.uint8)
    scan[28:228, 28:228, 28:228] = np.arange(28, 228) // 2 + 30
    fetched(monkeypatch, tmp_path, "pycortex", {"raw.nii.gz": nifti(scan, np.eye(3, 4))})

    read = head_slices(32, 0.8, ("axial", "coronal"))
    train, validation = read.splits["train"], read.splits["validation"]
    assert train.pixels.shape[1:] == validation.pixels.shape[1:] == (32, 32)
    for direction in ("axial", "coronal"):
        trained, held_out = (
            [int(name.removeprefix(f"{direction}_")) for name in part.ids if name.startswith(direction)]
            for part in (train, validation)
        )
        assert trained + held_out == sorted(trained + held_out)
        assert held_out[0] - trained[-1] == 9
        assert len(trained) / (len(trained) + len(held_out)) == pytest.approx(0.8, abs=0.01)
    assert train.ids[0] == "axial_028"
    assert int(train.pixels[0].max()) == 28 // 2 + 30
    assert (
        read.facts["licence"] == "pycortex: BSD-2-Clause, that of the package; the scan has no terms of its own in it"
    )
    assert read.facts["archive_sha256"] == f"pycortex {SOURCES['pycortex'].sha256[:16]}"
    with pytest.raises(DataError, match="head slices of 100 pixels a side"):
        head_slices(100)


def test_photos_are_split_by_photograph_and_cut_without_overlap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package, contents in wavessm_files(40, 56).items():
        if package == "scikit-image":
            contents["camera.png"] = picture(grey(32))
            contents["rocket.jpg"] = picture(colour(20, 20), "JPEG")
        fetched(monkeypatch, tmp_path, package, contents)

    read = real_photos(16)
    train, validation = read.splits["train"], read.splits["validation"]
    assert len(validation) == 5 * 2 * 3
    assert len(train) == 8 * 2 * 3 + 2 * 2 + 2 * 1 * 1  # eight colour, camera, two JPEGs at half size
    assert (read.facts["num_too_small"], read.facts["too_small"]) == (1, "rocket")
    camera = train.pixels[train.ids.index("camera_1_1")]
    assert (camera == camera[..., :1]).all()
    assert not {name.split("_")[0] for name in train.ids} & {name.split("_")[0] for name in validation.ids}
    with pytest.raises(DataError, match="no train photograph holds a tile of 64 pixels"):
        real_photos(64)


def test_without_fetched_images_the_error_names_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path))
    with pytest.raises(DataError, match="`hpcstab data fetch vae2d`"):
        head_slices(64)
    with pytest.raises(DataError, match="`hpcstab data fetch wavessm`"):
        real_photos(64)
