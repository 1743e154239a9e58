"""Photographs cut into square colour tiles: trained on are those of scikit-image and scikit-learn, held out sporco's.

N = edge of a tile in pixels. No photograph is in both parts.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from hpcstab.data.images import Images, Pixels, RealImages, UnusableImageError, decode_image, shrink
from hpcstab.data.sources import SOURCES, provenance, read_member
from hpcstab.data.sources.source import Source
from hpcstab.errors import DataError
from hpcstab.task import Split

_PACKAGES: dict[Split, tuple[str, ...]] = {"train": ("scikit-image", "scikit-learn"), "validation": ("sporco",)}
_JPEG_SHRINK = 2  # the blocks of a JPEG must not be what a network learns


def real_photos(size: int) -> RealImages:
    """All whole tiles (N, N, 3) of the photographs, without overlap; grey photographs have three equal channels.

    Raises:
        DataError: a source was not fetched or is damaged, or no tile of this size fits into any photograph of a part.
    """
    tiles: dict[Split, list[tuple[str, Pixels]]] = {"train": [], "validation": []}
    too_small: list[str] = []
    for split, packages in _PACKAGES.items():
        for source in (SOURCES[package] for package in packages):
            for path in map(PurePosixPath, source.members):
                cut = _tiles(_photo(source, path.name), size, path.stem)
                tiles[split] += cut
                too_small += [] if cut else [path.stem]
        if not tiles[split]:
            raise DataError(f"no {split} photograph holds a tile of {size} pixels a side; choose a smaller image size")
    sources = [SOURCES[package] for packages in _PACKAGES.values() for package in packages]
    facts: dict[str, int | float | str] = {
        "source": f"photographs: {' and '.join(_PACKAGES['train'])} to train, sporco held out",
        "split": "by photograph",
        "num_too_small": len(too_small),
        **({"too_small": ", ".join(too_small)} if too_small else {}),
        **provenance(sources),
    }
    return RealImages({split: _images(part) for split, part in tiles.items()}, facts)


def _photo(source: Source, name: str) -> Pixels:
    """(H, W, 3)"""
    suffix = PurePosixPath(name).suffix
    try:
        pixels = decode_image(read_member(source, name), suffix)
    except UnusableImageError as error:
        raise DataError(f"{name} of {source.release} cannot be used: {error}") from None
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return shrink(pixels, _JPEG_SHRINK) if suffix == ".jpg" else pixels


def _tiles(photo: Pixels, size: int, name: str) -> list[tuple[str, Pixels]]:
    """Named by row and column of the tile; what remains at the right and below is left out."""
    rows, columns = (edge // size for edge in photo.shape[:2])
    return [
        (f"{name}_{row}_{column}", photo[row * size : (row + 1) * size, column * size : (column + 1) * size])
        for row in range(rows)
        for column in range(columns)
    ]


def _images(named: list[tuple[str, Pixels]]) -> Images:
    return Images(np.stack([pixels for _, pixels in named]), [name for name, _ in named])
