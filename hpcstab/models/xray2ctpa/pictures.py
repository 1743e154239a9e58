"""Pictures of held-out chests: X-ray and projection, true and sampled slices."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcstab.models.xray2ctpa.config import Config
from hpcstab.models.xray2ctpa.data import Volumes
from hpcstab.models.xray2ctpa.evaluation import films_of, sample_patches, whole
from hpcstab.stability.numerics import at_least_fp32
from hpcstab.task import Picture, StepContext

_NUM_PICTURES = 2
_EDGE, _GAP = 128, 2  # pixels of a panel, at least, and between panels


def pictures_of(network: nn.Module, validation: Volumes, context: StepContext, config: Config) -> list[Picture]:
    """One picture a chest, two rows: the true X-ray, coronal, axial and sagittal slice; the same of what was made."""
    pictures = []
    for index in range(min(_NUM_PICTURES, len(validation))):
        item = {name: value[None].to(context.device) for name, value in validation[index].items()}
        made = _made(network, item, context, config)
        rows = []
        for volume in (whole(item["volume"], config.data.volume_size), made):
            film = films_of(volume, item)[0, 0]
            rows.append([film, *_slices(volume[0, 0])])
        pictures.append(Picture(f"{validation.ids[index]}_true_made", _sheet(rows)))
    return pictures


def _made(network: nn.Module, item: dict[str, Tensor], context: StepContext, config: Config) -> Tensor:
    """The volume (1, 1, N, N, N) that the network makes: sampled from the X-ray, or rebuilt by the first stage."""
    patches = item["volume"][0]
    if config.network.stage == "autoencoder":
        made = at_least_fp32(network(patches)[0]).clamp(0.0, 1.0)
    else:
        codes = network.code(item["xray"]).expand(len(patches), -1)  # type: ignore[operator]
        shape = network.encode(patches).shape  # type: ignore[operator]
        made = sample_patches(network, codes, item["places"][0], shape, context.generator("pictures"))  # type: ignore[arg-type]
    return whole(made[None], config.data.volume_size)


def _slices(volume: Tensor) -> list[Tensor]:
    """The middle coronal, axial and sagittal slice of (X, Y, Z), head or front up, the patient's right on the left."""
    x, y, z = (edge // 2 for edge in volume.shape)
    return [volume[:, y].T.flip(0, 1), volume[:, :, z].T.flip(0, 1), volume[x].T.flip(0)]


def _sheet(rows: list[list[Tensor]]) -> NDArray[np.uint8]:
    lines = [np.concatenate([_panel(image) for image in row], axis=1) for row in rows]
    return np.concatenate(lines, axis=0)


def _panel(image: Tensor) -> NDArray[np.uint8]:
    grey = (image.detach().float().nan_to_num().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    grey = torch.nn.functional.interpolate(grey[None, None].float(), size=(_EDGE, _EDGE)).to(torch.uint8)[0, 0]
    return np.pad(grey.cpu().numpy(), _GAP, constant_values=255)
