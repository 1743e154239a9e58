"""A chest X-ray from a CT: Beer-Lambert absorption along lines from back to front."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_WATER_PER_MM = 0.02  # attenuation of water at about 60 keV
_EXPOSURE = 0.35  # so that neither lungs nor spine leave the range of the film


def project(volumes_hu: Tensor, spacing_mm: Tensor, size: int) -> Tensor:
    """The frontal film of CTs.

    Args:
        volumes_hu: (B, 1, X, Y, Z) in Hounsfield units, y to the front, z to the head.
        spacing_mm: between voxels along y, of each, (B, 1).
        size: S, edge of the film in pixels.

    Returns:
        (B, 1, S, S) in [0, 1), dense tissue bright, the head up, the patient's right on the left, as films are looked
        at: 1 - exp(-0.35 x the sum of attenuation).
    """
    attenuation = (volumes_hu / 1000.0 + 1.0).clamp(min=0.0) * _WATER_PER_MM
    film = 1.0 - torch.exp(-_EXPOSURE * attenuation.sum(3) * spacing_mm[:, :, None, None])  # (B, 1, X, Z)
    upright = film.transpose(2, 3).flip(2, 3)
    return functional.interpolate(upright, size=(size, size), mode="bilinear", antialias=True)
