"""The config keys of vae2d; torch-free, so that configs can be read and shown at once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, model_validator

from hpcstab.config import FolderKind, LossesConfig, RunConfig, Section, SourcedDataConfig
from hpcstab.config.section import KEEPS_NUMBERS

NUM_ATTENTION_GROUPS = 8
SSIM_WINDOW = 11


class Network(Section):
    """Encoder 1 -> channels -> latent and its mirror; each of the ``channels`` halves the edge of the image.

    ``skip_norm``: what follows the convolution of a skip branch. ``init``: PyTorch's own, or Kaiming normal for all
    convolutions by fan_out or by fan_in. ``head_init``: the heads of mean and log-variance like all others
    (``shared``), or Xavier uniform with gain 0.01 (``near_zero``). ``logvar``: as it is, cut at +-10 (``clamp``: no
    gradient outside), or 10 tanh(x / 10) (``bounded``). ``attention``: at a sixteenth of the edge, in both halves;
    ``attention_init`` is that of its output projection. ``sample_channels``: of the prior samples in the pictures;
    null: those of the latents.
    """

    channels: Annotated[tuple[int, ...], Strict(False)] = Field(min_length=2)
    latent_channels: int = Field(ge=1)
    skip_norm: Literal["none", "batchnorm"]
    init: Literal["default", "kaiming_fan_out", "kaiming_fan_in"]
    head_init: Literal["shared", "near_zero"]
    logvar: Literal["raw", "clamp", "bounded"]
    upsampling: Literal["transposed", "bilinear"]
    up_convs: Literal[1, 2]
    up_activation: Literal["relu", "leaky_relu"]
    attention: bool
    attention_init: Literal["shared", "zero"]
    sample_channels: int | None = Field(ge=1, json_schema_extra=KEEPS_NUMBERS)

    @model_validator(mode="after")
    def _groups_divide_the_attended_channels(self) -> Network:
        if self.channels[-2] % NUM_ATTENTION_GROUPS:
            raise ValueError(
                f"channels[-2] is {self.channels[-2]}: the group norm before the attention needs a multiple of"
                f" {NUM_ATTENTION_GROUPS}"
            )
        return self


class Data(SourcedDataConfig):
    """Square single-channel images of ``image_size`` pixels a side, in [0, 1].

    ``source``: ``synthetic`` chest films that are made here, ``num_samples`` of them; ``real`` slices of a head that
    was fetched; or the images of a ``folder`` of the user's own, in order of their names. Real images and those of a
    folder are split in order, so that near-copies stay on one side: the last ones are held out.
    """

    folder_kind: ClassVar[FolderKind] = "images"
    image_size: int = Field(ge=16)

    def sources(self) -> tuple[str, ...]:
        return ("pycortex",) if self.source == "real" else ()


class Weights(Section):
    """Weights of the three loss terms; the write-up's kl_weight_max is ``kl``."""

    reconstruction: float = Field(ge=0)
    kl: float = Field(ge=0)
    spectral: float = Field(ge=0)


class Losses(LossesConfig):
    """Reconstruction, KL divergence of the posterior from N(0, I), and distance of the spectra.

    ``reduction``: ``sum`` over pixels and over latents; ``mean`` over pixels and over latents, which multiplies the
    effective beta by pixels / latents; ``per_pixel``: both sums over the number of pixels, so that beta is the weight.
    ``reconstruction``: mean squared error, half L1 and half 1 - SSIM, or the negative log-likelihood of a Gaussian
    whose variance is the batch's own error. ``scales``: the last at full size and, with 3, at a half and a quarter.
    ``free_bits``: nats below which a latent's KL is not reduced any further; null has no floor. ``evaluation``: the
    write-up's validation loss decodes the ``mean`` of the posterior, or a ``sample``; its program picks the best model
    ``best_by`` the reconstruction in it or the whole loss (the metric ``selection``).
    """

    weights: Weights
    reconstruction: Literal["mse", "l1_ssim", "gaussian"]
    reduction: Literal["sum", "mean", "per_pixel"]
    scales: Literal[1, 3]
    free_bits: float | None = Field(gt=0)
    evaluation: Literal["mean", "sample"]
    best_by: Literal["reconstruction", "loss"] = Field(json_schema_extra=KEEPS_NUMBERS)


class Config(RunConfig):
    """One vae2d run, complete."""

    network: Network
    data: Data
    losses: Losses

    @model_validator(mode="after")
    def _image_fits(self) -> Config:
        size, halvings = self.data.image_size, len(self.network.channels)
        if size % 2**halvings:
            raise ValueError(
                f"data.image_size is {size}, but network.channels has {halvings} entries, each of which halves it:"
                f" make it a multiple of {2**halvings}"
            )
        smallest = size >> (self.losses.scales - 1)
        if smallest < SSIM_WINDOW:
            raise ValueError(
                f"data.image_size {size} is {smallest} at the coarsest of losses.scales {self.losses.scales},"
                f" below SSIM's window of {SSIM_WINDOW}: make it larger"
            )
        return self
