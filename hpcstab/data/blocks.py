"""Volumes cut into cubes, and put together again.

(D, H, W) = edges of a volume, b = edge of a block, N = blocks of a volume.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError

Shape = tuple[int, int, int]


def to_blocks(volume: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """Cut a volume (D, H, W) into blocks (N, 1, b, b, b), the last axis running fastest.

    Raises:
        DataError: it has not three axes, or an edge is no multiple of `block_size`.
    """
    if volume.ndim != 3:
        raise DataError(f"a volume has shape {volume.shape}: need three axes (D, H, W)")
    first, second, third = _blocks_per_axis(volume.shape, block_size)
    grid = volume.reshape(first, block_size, second, block_size, third, block_size)
    return grid.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 1, block_size, block_size, block_size)


def from_blocks(blocks: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Put blocks (N, 1, b, b, b) back together into a volume of ``shape``: the exact inverse of `to_blocks`.

    Raises:
        DataError: the blocks do not fill such a volume.
    """
    block_size = blocks.shape[-1]
    per_axis = _blocks_per_axis(shape, block_size)
    if blocks.shape != (math.prod(per_axis), 1, block_size, block_size, block_size):
        raise DataError(
            f"blocks have shape {blocks.shape}: a volume {shape} needs"
            f" {(math.prod(per_axis), 1, block_size, block_size, block_size)}"
        )
    grid = blocks.reshape(*per_axis, block_size, block_size, block_size)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(shape)


def crop(volume: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """The first whole blocks along each axis of a volume (D, H, W).

    Raises:
        DataError: an edge is shorter than one block.
    """
    edges = [edge // block_size * block_size for edge in volume.shape]
    if not all(edges):
        raise DataError(f"a volume of shape {volume.shape} holds no block of edge {block_size}")
    return volume[tuple(slice(edge) for edge in edges)]


def _blocks_per_axis(shape: tuple[int, ...], block_size: int) -> list[int]:
    if block_size < 1 or any(edge < block_size or edge % block_size for edge in shape):
        raise DataError(
            f"a volume of shape {shape} cannot be cut into blocks of edge {block_size}: "
            "every edge must be a multiple of the block size"
        )
    return [edge // block_size for edge in shape]
