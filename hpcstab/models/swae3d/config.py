"""The config keys of swae3d; torch-free, so that configs can be read and shown at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator

from hpcstab.config import DataConfig, LossesConfig, RunConfig, Section


class Network(Section):
    """Encoder 1 -> channels -> latent and its mirror, on cubes of ``block_size`` = 2 ** len(channels).

    ``gdn_init``: ``identity`` is beta 1, gamma 0.1 I; ``first_batch`` is beta 1e-6, gamma 0.1 randn, which
    takes the square root of a negative number in the first forward pass. ``gdn_beta`` is where beta starts
    under ``identity`` and in the bounded form. ``conv_init``: ``default`` is PyTorch's, ``fan_in`` keeps the
    variance of a signal from layer to layer.
    """

    normalization: Literal["gdn", "batchnorm", "gdn_bounded"]
    gdn_init: Literal["identity", "first_batch"]
    gdn_beta: float = Field(gt=0)
    conv_init: Literal["default", "fan_in"]
    channels: Annotated[tuple[int, ...], Strict(False)] = Field(min_length=1)
    latent_dim: int = Field(ge=1)
    block_size: int = Field(ge=2)


FieldName = Literal[
    "density_crystal", "density_particle", "theta", "pressure", "wind_zonal", "wind_meridional"
]  # those of hpcstab/data/fields.py; stated here so that a config is read without NumPy


class Data(DataConfig):
    """Volumes that are ``synthetic`` (functions) or ``real``: fetched ``fields``, each with a split of its own.

    All keys from ``functions`` on, ``num_samples`` and ``train_split`` belong to synthetic volumes: cubes of
    ``resolution`` points a side over [-1, 1]. ``functions``: ``repeated`` is the write-up's set, which cycles over
    kx = ky = kz without phase or amplitude, so that validation volumes are training volumes; ``varied`` has random
    phases, amplitudes and wave numbers, with whole (kx, ky, kz) combinations held out.
    """

    source: Literal["synthetic", "real"]
    fields: Annotated[tuple[FieldName, ...], Strict(False)] = Field(min_length=1)
    functions: Literal["repeated", "varied"]
    wave_numbers: Annotated[tuple[int, ...], Strict(False)] = Field(min_length=1)
    resolution: int = Field(ge=2)

    @field_validator("fields")
    @classmethod
    def _each_once(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(fields)) < len(fields):
            raise ValueError(f"names a field twice, got {', '.join(fields)}; each can be there once")
        return fields

    def sources(self) -> tuple[str, ...]:
        from hpcstab.data.fields import FIELDS

        return tuple(dict.fromkeys(FIELDS[name].package for name in self.fields)) if self.source == "real" else ()


class Weights(Section):
    """Weights of the two loss terms; the write-up's lambda is ``sliced_wasserstein``."""

    mse: float = Field(ge=0)
    sliced_wasserstein: float = Field(ge=0)


class Losses(LossesConfig):
    """Mean squared error and sliced-Wasserstein distance of the latents to a standard normal."""

    weights: Weights
    num_projections: int = Field(ge=1)


class Config(RunConfig):
    """One swae3d run, complete."""

    network: Network
    data: Data
    losses: Losses
