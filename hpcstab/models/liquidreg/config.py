"""The config keys of liquidreg; torch-free, so that configs can be read and shown at once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, field_validator, model_validator

from hpcstab.config import FolderKind, LossesConfig, RunConfig, Section, SourcedDataConfig
from hpcstab.config.section import KEEPS_NUMBERS


class Network(Section):
    """A shared encoder of strided convolutions, a hyper-network, a liquid cell and the flow of its velocity.

    ``encoder_channels``: of the stages, each of which halves every edge. ``norm``: ``batch``, or ``layer``, over all
    of a volume. ``hidden_size``: of the hyper-network. ``num_units``, ``num_steps``, ``solver``: of the liquid cell.
    ``weights``: ``functional`` runs the cell with what the hyper-network wrote, ``detached`` cuts autograd between
    them. ``velocity_scale``: the largest velocity of any axis, in voxels. ``grid_limit``: of sampling positions, 1 is
    the outermost voxel's centre. ``grad_scaler``: the call by which the write-up's program made its loss scaler; the
    trainer has its own, so that it changes no number.
    """

    encoder_channels: Annotated[tuple[int, ...], Strict(False)] = Field(min_length=1)
    norm: Literal["batch", "layer"]
    hidden_size: int = Field(ge=1)
    weights: Literal["functional", "detached"]
    num_units: int = Field(ge=1)
    num_steps: int = Field(ge=1)
    solver: Literal["euler", "cfc"]
    velocity_scale: float = Field(gt=0)
    num_squarings: int = Field(ge=0)
    grid_limit: float = Field(gt=0, le=1)
    grad_scaler: Literal["torch.cuda.amp", "dummy", "torch.amp"] = Field(json_schema_extra=KEEPS_NUMBERS)


class Data(SourcedDataConfig):
    """Pairs of volumes, ``edge`` voxels a side; held out by pair.

    ``source``: ``synthetic`` draws labelled brains, one a pair; ``real``: each pair is one of the fetched ``brains``
    and itself, warped, and with both of them their own pair is held out too; ``folder``: pairs of subjects of a
    ``folder`` (imagesTr, labelsTr), held out by subject, as many as there are. ``normalize``: intensities as they
    come, or each volume as z-scores or in [0, 1]. ``largest_velocity``: of the known warps along an axis, in voxels;
    each pair draws from half of it to all of it.
    """

    folder_kind: ClassVar[FolderKind] = "subjects"
    brains: Annotated[tuple[Literal["mni152", "colin27"], ...], Strict(False)] = Field(min_length=1)
    edge: int = Field(ge=16)
    normalize: Literal["none", "zscore", "minmax"]
    largest_velocity: float = Field(gt=0)

    def sources(self) -> tuple[str, ...]:
        from hpcstab.data.scanned_brains import BRAIN_PACKAGES

        return tuple(BRAIN_PACKAGES[name] for name in self.brains) if self.source == "real" else ()


class Weights(Section):
    """Weights of the loss terms; the first four are the write-up's, with ``velocity`` its smoothness."""

    lncc: float = Field(ge=0)
    jacobian: float = Field(ge=0)
    velocity: float = Field(ge=0)
    liquid: float = Field(ge=0)
    diffusion: float = Field(ge=0)
    folding: float = Field(ge=0)


class Losses(LossesConfig):
    """Minus the mean LNCC and the regularising terms, all of fp32 displacements and volumes.

    ``lncc``: the form, see lncc.py; ``lncc_window``: edge of its cubic window in voxels.
    """

    weights: Weights
    lncc: Literal["raw", "guarded", "centred"]
    lncc_window: int = Field(ge=3)

    @field_validator("lncc_window")
    @classmethod
    def _odd(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError(f"must be odd, so that a window has a middle; got {window}")
        return window


class Config(RunConfig):
    """One liquidreg run, complete."""

    network: Network
    data: Data
    losses: Losses

    @model_validator(mode="after")
    def _window_fits(self) -> Config:
        if self.losses.lncc_window // 2 >= self.data.edge:
            raise ValueError(f"losses.lncc_window {self.losses.lncc_window} is too wide for data.edge {self.data.edge}")
        return self
