"""The config classes that all models share; ``network`` and a model's own keys stand in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from hpcstab.config.durations import Duration
from hpcstab.config.guards import Guards
from hpcstab.config.section import KEEPS_NUMBERS, Section

Betas = Annotated[tuple[float, float], Strict(False)]
"""A YAML list is a tuple here: a frozen config holds nothing that can change."""


class OptimizerConfig(Section):
    """The optimizer; keys that its kind does not use are stated all the same and ignored by it alone."""

    name: Literal["adam", "adamw", "sgd"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    betas: Betas
    eps: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)


class SchedulerConfig(Section):
    """The learning rate by update: a linear warm-up, then constant or a cosine to ``min_lr_fraction``."""

    name: Literal["constant", "cosine"]
    warmup: Duration
    min_lr_fraction: float = Field(ge=0, le=1)


class LossScaleConfig(Section):
    """The factor on an fp16 loss: it halves when gradients overflow, doubles after ``growth_every`` applied steps."""

    initial: float = Field(ge=1)
    growth_every: int = Field(ge=1)


class PrecisionConfig(Section):
    """Number formats of forward and backward; parameters and optimizer state stay fp32.

    ``loss_scale`` belongs to fp16; null trains fp16 without one.
    """

    dtype: Literal["fp32", "bf16", "fp16"]
    tf32: bool
    loss_scale: LossScaleConfig | None

    @model_validator(mode="after")
    def _scale_for_fp16(self) -> PrecisionConfig:
        if self.loss_scale is not None and self.dtype != "fp16":
            raise ValueError(f"precision.loss_scale belongs to fp16; dtype is {self.dtype}: set it to null")
        return self


class BatchNormConfig(Section):
    """Every normalisation layer with running statistics: how it is set, and what happens when they are sick.

    ``momentum``, ``eps``: null keeps the layer's own value. Statistics are sick where they are not finite or a
    variance is negative; they are looked at every ``check_every`` (null: never), after a checkpoint was loaded, before
    each evaluation. ``repair``: ``none``; ``reset`` to mean 0 and variance 1 (a mask: another function than the trained
    one); ``restore`` those of the last passed check; ``reestimate`` them from ``reestimate_batches`` training batches.
    More checks than ``max_repairs`` that had to repair end the run as halted; null: never.
    """

    momentum: float | None = Field(gt=0, le=1)
    eps: float | None = Field(gt=0)
    check_every: Duration | None
    check_after_load: bool
    check_before_evaluation: bool
    repair: Literal["none", "reset", "restore", "reestimate"]
    reestimate_batches: int = Field(ge=1)
    max_repairs: int | None = Field(ge=0)

    @model_validator(mode="after")
    def _cadence_above_zero(self) -> BatchNormConfig:
        if self.check_every is not None and not (self.check_every.steps or self.check_every.epochs):
            raise ValueError("stability.batchnorm.check_every must be longer than nothing; null never checks")
        return self


class StabilityConfig(Section):
    """What stands between a gradient and the parameters.

    ``gate``: ``open`` applies every update; ``step_only`` leaves out the optimizer step of a non-finite loss or
    gradient, as GradScaler and most loops do; ``closed`` lets nothing of a bad step stay. ``health_every``:
    parameters, buffers and optimizer state are looked at so often. ``guards``: none, default or their whole section.
    """

    gate: Literal["open", "step_only", "closed"]
    guards: Guards
    clip_grad_norm: float | None = Field(gt=0)
    health_every: Duration
    batchnorm: BatchNormConfig

    @model_validator(mode="after")
    def _guards_need_the_gate(self) -> StabilityConfig:
        if self.guards is not None and self.gate != "closed":
            raise ValueError(
                f"stability.guards need stability.gate closed, it is {self.gate}: what they refuse must leave nothing"
            )
        return self


class TrainerConfig(Section):
    """Length and cadences of a training.

    ``max_steps``, where set, is the length and replaces ``epochs``. ``duration_factor`` of a scale
    shrinks all durations inside the training alike. ``nonfinite_budget``: so many steps in a row with
    a non-finite loss end the run as diverged, in all variants alike; with ``stability.guards`` their ladder decides
    instead, and ends it as halted. ``micro_batches``: a batch is cut into so many parts whose gradients add up.
    ``ema_decay``: null keeps no moving average of the parameters. ``max_eval_samples``: an evaluation looks at the
    first so many held-out items, null at all of them; baselines are of all.
    """

    epochs: int = Field(ge=1)
    max_steps: int | None = Field(ge=1)
    duration_factor: float = Field(gt=0, le=1)
    nonfinite_budget: int = Field(ge=1)
    evaluate_every: Duration
    checkpoint_every: Duration
    probe_every: Duration = Field(json_schema_extra=KEEPS_NUMBERS)
    micro_batches: int = Field(ge=1)
    ema_decay: float | None = Field(gt=0, lt=1)
    max_eval_samples: int | None = Field(ge=1)
    tensorboard: Literal["off", "optional", "required"] = Field(json_schema_extra=KEEPS_NUMBERS)

    @model_validator(mode="after")
    def _cadences_above_zero(self) -> TrainerConfig:
        for name in ("evaluate_every", "checkpoint_every", "probe_every"):
            duration = getattr(self, name)
            if not (duration.steps or duration.epochs):
                raise ValueError(f"trainer.{name} must be longer than nothing")
        return self


class DataFault(Section):
    """A fault on purpose: one element of the batch of training step ``step`` is an infinity or a NaN."""

    step: int = Field(ge=0)
    kind: Literal["inf_pixel", "nan_pixel"]


FolderKind = Literal["images", "subjects", "pairs"]
"""What is read of a folder of the user's own: images, subjects as Learn2Reg lays them out, pairs of CT and X-ray."""


class DataConfig(Section):
    """Keys of ``data`` that the trainer itself reads.

    ``faults``: where a failure needs a trigger that is not in the data. They are declared in the base, equal in all
    variants, and reports say so; a gate that refuses such a step hides nothing.
    """

    num_samples: int = Field(ge=2)
    train_split: float = Field(gt=0, lt=1)
    batch_size: int = Field(ge=1)
    num_workers: int = Field(ge=0, json_schema_extra=KEEPS_NUMBERS)
    faults: Annotated[tuple[DataFault, ...], Strict(False)]

    def sources(self) -> tuple[str, ...]:
        """Packages of the fetched data that the run reads (hpcstab/data/sources); none where it draws its own."""
        return ()

    def folders(self) -> Mapping[str, FolderKind]:
        """Folders of the user's own that the run reads."""
        return {}

    @model_validator(mode="after")
    def _one_fault_a_step(self) -> DataConfig:
        steps = [fault.step for fault in self.faults]
        if len(set(steps)) < len(steps):
            raise ValueError(f"data.faults has two faults in one step, got steps {steps}; one a step is allowed")
        return self


class SourcedDataConfig(DataConfig):
    """Data that are drawn here (``synthetic``), were fetched (``real``), or lie in a ``folder`` of the user's own."""

    folder_kind: ClassVar[FolderKind]
    source: Literal["synthetic", "real", "folder"]
    folder: str | None = Field(min_length=1)

    def folders(self) -> Mapping[str, FolderKind]:
        return {} if self.folder is None else {self.folder: self.folder_kind}

    @model_validator(mode="after")
    def _folder_where_it_is_read(self) -> SourcedDataConfig:
        if self.source == "folder" and self.folder is None:
            raise ValueError(
                f"source is folder, but folder is null: name the folder of your {self.folder_kind}, data.folder=PATH"
            )
        if self.source != "folder" and self.folder is not None:
            raise ValueError(
                f"folder is '{self.folder}', which source {self.source} does not read: set source to folder"
            )
        return self


class Phase(Section):
    """When a loss term is on: off until ``start``, then a linear ramp of length ``ramp`` to its weight.

    ``to``: to this part of it. A term with several phases goes from the part of one to that of the next.
    """

    start: Duration
    ramp: Duration
    to: float = Field(default=1.0, ge=0, le=1)

    def __str__(self) -> str:
        end = f" to {self.to:g}" if self.to != 1.0 else ""
        return f"start {self.start}, ramp {self.ramp}{end}"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, Mapping) else value


Phases = Annotated[tuple[Phase, ...], Strict(False), BeforeValidator(_as_list)]
"""The phases of one term, in order; a single one may stand without a list."""


class LossesConfig(Section):
    """Weights of the loss terms, by name; a model's class states which terms it has.

    A term of weight zero is left out of the sum, unless ``multiply_zero_weights`` keeps the
    product (and with it 0 x inf = NaN) as a write-up had it. ``on_bad_term``: where a closed gate leaves a step out
    since some terms, not all, have a non-finite value or gradient, ``ramp_again`` takes those down to zero and up
    again over ``bad_term_ramp``; ``ignore`` changes no weight.
    """

    weights: Section
    phases: dict[str, Phases]
    multiply_zero_weights: bool
    on_bad_term: Literal["ignore", "ramp_again"]
    bad_term_ramp: Duration

    @model_validator(mode="after")
    def _phases_name_terms(self) -> LossesConfig:
        terms = list(type(self.weights).model_fields)
        unknown = [name for name in self.phases if name not in terms]
        if unknown:
            raise ValueError(f"losses.phases.{unknown[0]} is no loss term; there are {', '.join(terms)}")
        return self


class RunConfig(Section):
    """One run, complete: what is trained, how long, in which precision. Model classes narrow three fields."""

    network: Section
    data: DataConfig
    losses: LossesConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    precision: PrecisionConfig
    stability: StabilityConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> RunConfig:
        if self.data.batch_size % self.trainer.micro_batches:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} cannot be cut into trainer.micro_batches "
                f"{self.trainer.micro_batches} equal parts"
            )
        if self.precision.loss_scale is not None and self.stability.gate == "open":
            raise ValueError(
                "precision.loss_scale needs stability.gate step_only or closed: a scale that overflows skips its step"
            )
        if self.losses.on_bad_term == "ramp_again" and self.stability.gate != "closed":
            raise ValueError(
                f"losses.on_bad_term ramp_again needs stability.gate closed, got {self.stability.gate}:"
                " only a closed gate leaves the step of a bad term out"
            )
        return self
