"""The config keys of wavessm; torch-free, so that configs can be read and shown at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, model_validator

from hpcstab.config import FolderKind, LossesConfig, RunConfig, Section, SourcedDataConfig

Widths = Annotated[tuple[int, ...], Strict(False)]
Ratio = Annotated[float, Field(gt=0, lt=1)]


class Network(Section):
    """A U-shape of state-space blocks, ``num_blocks`` at each level of ``channels``, and a Fourier refinement.

    ``kind``: ``wavessm``, or ``unet``, a plain one with as many levels and parameters. ``scan``: ``clamped`` is the
    write-up's fallback, wrong on long sequences; ``exact`` is the recurrence. ``fp32_scan``, ``fp32_refinement``:
    these parts in fp32 whatever ``precision.dtype`` is. ``global_ratios``: the part of the channels that each block
    of the refinement filters in the spectrum. ``starts_as_identity``: the last convolution starts at zero.
    """

    kind: Literal["wavessm", "unet"]
    channels: Widths = Field(min_length=1)
    num_blocks: Widths = Field(min_length=1)
    num_states: int = Field(ge=1)
    num_low_states: int = Field(ge=1)
    global_ratios: Annotated[tuple[Ratio, ...], Strict(False)] = Field(min_length=1)
    scan: Literal["exact", "clamped"]
    fp32_scan: bool
    fp32_refinement: bool
    starts_as_identity: bool

    @model_validator(mode="after")
    def _levels_fit(self) -> Network:
        if len(self.channels) != len(self.num_blocks):
            raise ValueError(
                f"network.channels has {len(self.channels)} levels, network.num_blocks {len(self.num_blocks)}"
            )
        if self.channels[0] < 2 or any(deep != 2 * wide for wide, deep in pairwise(self.channels)):
            raise ValueError(f"network.channels {list(self.channels)}: each level doubles the one before, from 2 on")
        return self


class Data(SourcedDataConfig):
    """Pairs of an image and its corruption, ``image_size`` pixels a side; held out by image.

    ``source``: ``synthetic`` pictures drawn from the seed, ``num_samples`` of them split at ``train_split``; ``real``,
    all tiles of this size of photographs that were fetched, held out by photograph, whatever ``num_samples`` and
    ``train_split`` are; or the colour images of a ``folder`` of the user's own, all of them, in order of their names
    and split at ``train_split``. ``coverage``: smallest and largest part of an image that is painted over.
    """

    folder_kind: ClassVar[FolderKind] = "images"
    image_size: int = Field(ge=8)
    coverage: Annotated[tuple[Ratio, Ratio], Strict(False)]

    def sources(self) -> tuple[str, ...]:
        return ("scikit-image", "scikit-learn", "sporco") if self.source == "real" else ()


class Weights(Section):
    """Weights of the loss terms at the end of all phases."""

    l1: float = Field(ge=0)
    perceptual: float = Field(ge=0)
    ssim: float = Field(ge=0)
    sobel: float = Field(ge=0)
    wavelet: float = Field(ge=0)


class Losses(LossesConfig):
    """Five terms of the restored image; all but the perceptual one are always computed in fp32."""

    weights: Weights
    fp32_perceptual: bool


class Config(RunConfig):
    """One wavessm run, complete."""

    network: Network
    data: Data
    losses: Losses

    @model_validator(mode="after")
    def _images_fit(self) -> Config:
        multiple = 2 ** (len(self.network.channels) + 1)
        if self.data.image_size % multiple:
            raise ValueError(
                f"data.image_size {self.data.image_size} must be a multiple of {multiple}:"
                f" network.channels has {len(self.network.channels)} levels, and wavelets halve the deepest twice"
            )
        return self
