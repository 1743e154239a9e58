"""Blocks are contiguous cubes and go back exactly, for volumes of any edges."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.data.blocks import crop, from_blocks, to_blocks
from hpcstab.errors import DataError


def test_blocks_are_contiguous_sub_cubes_and_go_back_exactly() -> None:
    volume = np.random.default_rng(0).standard_normal((12, 8, 16)).astype(np.float32)
    blocks = to_blocks(volume, 4)
    assert blocks.shape == (3 * 2 * 4, 1, 4, 4, 4)
    np.testing.assert_array_equal(blocks[1, 0], volume[:4, :4, 4:8])
    np.testing.assert_array_equal(blocks[4, 0], volume[:4, 4:8, :4])
    np.testing.assert_array_equal(blocks[8, 0], volume[4:8, :4, :4])
    np.testing.assert_array_equal(from_blocks(blocks, (12, 8, 16)), volume)


def test_crop_keeps_the_whole_blocks() -> None:
    volume = np.arange(9 * 7 * 4, dtype=np.float32).reshape(9, 7, 4)
    np.testing.assert_array_equal(crop(volume, 4), volume[:8, :4, :4])
    with pytest.raises(DataError, match=r"shape \(3, 8, 8\) holds no block of edge 4"):
        crop(np.zeros((3, 8, 8), np.float32), 4)


def test_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="multiple of the block size"):
        to_blocks(np.zeros((8, 10, 8), np.float32), 4)
    with pytest.raises(DataError, match="need three axes"):
        to_blocks(np.zeros((8, 8), np.float32), 4)
    with pytest.raises(DataError, match="blocks have shape"):
        from_blocks(np.zeros((7, 1, 4, 4, 4), np.float32), (8, 8, 8))
