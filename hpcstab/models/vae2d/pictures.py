"""Images side by side in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_SMALL, _GAP = 128, 2  # pixels


def sheet(rows: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Rows of images (B, 1, N, N) in [0, 1] as one grey picture, white gaps between them; small images are doubled."""
    zoom = 2 if rows[0].shape[-1] < _SMALL else 1
    lines = [np.concatenate([_tile(image, zoom) for image in row], axis=1) for row in rows]
    return np.concatenate(lines, axis=0)


def _tile(image: Tensor, zoom: int) -> NDArray[np.uint8]:
    grey = np.round(image[0].float().cpu().numpy().clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return np.pad(grey.repeat(zoom, 0).repeat(zoom, 1), _GAP, constant_values=255)
