"""Slices of a registered pair side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PICTURE_EDGE = 192  # pixels, at least
_LINES_APART = 4  # voxels between the lines of the warped grid
_GAP = 4  # pixels


def row_of_slices(fixed: Tensor, moving: Tensor, warped: Tensor, displacement: Tensor) -> NDArray[np.uint8]:
    """The middle slice along the last axis: fixed, moving, warped, magnitude of the displacement, warped grid.

    Grey spans the fixed volume's range, for moving and warped the moving one's; in the fourth panel 0 to the largest
    displacement of the slice, or to 3 voxels where that is more. Volumes (1, D, H, W), displacement (3, D, H, W).
    """
    middle = fixed.shape[-1] // 2
    panels: list[NDArray[Any]] = []
    for volume, unit in ((fixed, fixed), (moving, moving), (warped, moving)):
        low, high = float(unit.min()), float(unit.max())
        panels.append((volume[0, ..., middle].numpy() - low) / ((high - low) or 1.0))
    field = displacement[..., middle].numpy()
    magnitude = np.linalg.norm(field, axis=0)
    panels += [magnitude / max(3.0, float(magnitude.max())), _grid_lines(field)]
    return np.concatenate([_tile(panel) for panel in panels], axis=1)[:, :-_GAP]


def _grid_lines(field: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Lines of a regular grid of the moving volume as the fixed one sees them: (3, D, H) voxels -> (D, H) in [0, 1]."""
    places = np.stack(np.meshgrid(*map(np.arange, field.shape[1:]), indexing="ij")) + field[:2]
    from_line = np.abs((places + _LINES_APART / 2) % _LINES_APART - _LINES_APART / 2).min(axis=0)
    return np.asarray(np.clip(1.0 - from_line, 0.0, 1.0))


def _tile(panel: NDArray[Any]) -> NDArray[np.uint8]:
    """Turned so that the second axis points up, enlarged, a white gap at its right."""
    grey = (np.clip(np.rot90(panel), 0.0, 1.0) * 255).round().astype(np.uint8)
    zoom = max(1, PICTURE_EDGE // max(grey.shape))
    return np.pad(grey.repeat(zoom, 0).repeat(zoom, 1), ((0, 0), (0, _GAP)), constant_values=255)
