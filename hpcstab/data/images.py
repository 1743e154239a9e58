"""Images of a run, read from a user's folder or from a pinned source: what is wrong with one is named and counted.

N = edge of a square image in pixels. Grey images are (N, N), colour ones (N, N, 3), all uint8.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError
from hpcstab.task import DataFinding, FindingKind, Split

Pixels = NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg", ".npy")
_MAX_NAMES = 3


@dataclass(frozen=True)
class Images:
    """Images of one split: ``pixels`` (S, N, N) or (S, N, N, 3), an id each."""

    pixels: Pixels
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def named(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(id, image in [0, 1]), as the data check takes them."""
        for name, image in zip(self.ids, self.pixels, strict=True):
            yield name, image.astype(np.float32) / 255.0


@dataclass(frozen=True)
class RealImages:
    """Images that were not drawn by us. ``facts`` say where they are from; ``findings`` what was left out and why."""

    splits: Mapping[Split, Images]
    facts: Mapping[str, int | float | str]
    findings: tuple[DataFinding, ...] = ()


class UnusableImageError(Exception):
    """One image cannot be used: ``kind`` of the finding and, as text, what it is instead."""

    def __init__(self, kind: FindingKind, what: str) -> None:
        super().__init__(what)
        self.kind: FindingKind = kind


def read_folder(folder: Path, size: int, channels: Literal[1, 3], train_fraction: float) -> RealImages:
    """All PNG, JPEG and NPY images of a folder, in order of their names; the last ones are held out.

    Neighbours in a series (slices, frames) are near-copies, so the split is by order and not at random. An image that
    cannot be used is left out and counted in ``findings``; nothing is resized or converted.

    Args:
        size: N. channels: 1 for (N, N), 3 for (N, N, 3).

    Raises:
        DataError: no such folder, no image in it, or fewer than two that can be used.
    """
    paths = image_files(folder)
    usable: dict[str, Pixels] = {}
    bad: dict[FindingKind, list[str]] = defaultdict(list)
    for path in paths:
        try:
            usable[path.name] = check_image(decode_image(path.read_bytes(), path.suffix), size, channels)
        except UnusableImageError as error:
            bad[error.kind].append(f"{path.name} ({error})")
        except OSError as error:
            bad["unreadable"].append(f"{path.name} ({error.strerror})")
    findings = tuple(_finding(kind, names, len(paths)) for kind, names in bad.items())
    if len(usable) < 2:
        problems = "; ".join(finding.message for finding in findings) or "two are needed, one to hold out"
        raise DataError(f"image folder '{folder}': {len(usable)} of {len(paths)} images can be used: {problems}")
    num_train = min(len(usable) - 1, max(1, round(train_fraction * len(usable))))
    facts: dict[str, int | float | str] = {"source": f"images of {folder}", "num_left_out": len(paths) - len(usable)}
    if findings:
        facts["left_out"] = "; ".join(finding.message for finding in findings)
    return RealImages(split_in_order(list(usable.items()), num_train, num_train), facts, findings)


def image_files(folder: Path) -> list[Path]:
    """The files of a folder that are images by their names, in order; ``~`` is the user's home.

    Raises:
        DataError: no such folder, or no image in it.
    """
    try:
        paths = sorted(path for path in folder.expanduser().iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise DataError(f"image folder '{folder}' cannot be read: {error.strerror}") from None
    if not paths:
        raise DataError(f"image folder '{folder}' holds no image; read are {', '.join(SUFFIXES)}")
    return paths


def decode_image(content: bytes, suffix: str) -> Pixels:
    """(H, W) or (H, W, 3) from the bytes of a PNG, JPEG or NPY file; floats of an NPY are taken from [0, 1].

    Raises:
        UnusableImageError: it is damaged, or has other channels, another type or other values.
    """
    if suffix.lower() == ".npy":
        return _from_npy(content)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode, pixels = image.mode, np.asarray(image)
    except UnidentifiedImageError:  # Pillow's own words are about an object in memory
        raise UnusableImageError("unreadable", "no image of a known format") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableImageError("unreadable", str(error)[:80]) from None
    if pixels.dtype != np.uint8:
        raise UnusableImageError("dtype", f"{pixels.dtype}, mode {mode}; uint8 is read")
    if mode not in ("L", "RGB"):
        raise UnusableImageError("shape", f"mode {mode}; grey (L) and RGB are read")
    return pixels.astype(np.uint8, copy=False)


def check_image(pixels: Pixels, size: int, channels: Literal[1, 3]) -> Pixels:
    """The image, if it has the wanted shape and is not one value everywhere.

    Raises:
        UnusableImageError: otherwise.
    """
    wanted = (size, size) if channels == 1 else (size, size, channels)
    if pixels.shape != wanted:
        raise UnusableImageError("shape", f"{pixels.shape} instead of {wanted}")
    if pixels.min() == pixels.max():
        raise UnusableImageError("constant", f"{pixels.min()} everywhere")
    return pixels


def split_in_order(images: list[tuple[str, Pixels]], num_train: int, first_held_out: int) -> dict[Split, Images]:
    """The first ``num_train`` images, and those from ``first_held_out`` on; what lies between is a gap."""
    parts: dict[Split, list[tuple[str, Pixels]]] = {"train": images[:num_train], "validation": images[first_held_out:]}
    return {
        split: Images(np.stack([pixels for _, pixels in part]), [name for name, _ in part])
        for split, part in parts.items()
    }


def shrink(pixels: Pixels, factor: int) -> Pixels:
    """(H, W) or (H, W, 3) as means of ``factor`` x ``factor`` pixels; an incomplete rest at the end is cut off."""
    height, width = (edge // factor for edge in pixels.shape[:2])
    cut = pixels[: height * factor, : width * factor]
    grid = cut.reshape(height, factor, width, factor, *pixels.shape[2:])
    means: Pixels = np.rint(grid.mean(axis=(1, 3))).astype(np.uint8)
    return means


def _from_npy(content: bytes) -> Pixels:
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnusableImageError("unreadable", str(error)[:80]) from None
    if values.dtype == np.uint8:
        pixels: Pixels = values
        return pixels
    if values.dtype not in (np.float32, np.float64):
        raise UnusableImageError("dtype", f"{values.dtype}; uint8, and float32 or float64 in [0, 1] are read")
    if not np.isfinite(values).all():
        raise UnusableImageError("non_finite", f"{np.count_nonzero(~np.isfinite(values))} values are NaN or infinite")
    if values.size and (values.min() < 0.0 or values.max() > 1.0):
        raise UnusableImageError("range", f"{values.min():g} to {values.max():g}; floats are read from [0, 1]")
    scaled: Pixels = np.rint(values * 255.0).astype(np.uint8)
    return scaled


def _finding(kind: FindingKind, names: list[str], num_files: int) -> DataFinding:
    texts: dict[FindingKind, str] = {
        "unreadable": "cannot be read",
        "shape": "have another size or other channels",
        "dtype": "have another type",
        "constant": "are constant",
        "non_finite": "hold NaN or infinities",
        "range": "leave [0, 1]",
    }
    some = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return DataFinding(kind, "all", len(names), f"{len(names)} of {num_files} images {texts[kind]}, left out: {some}")
