"""Config of the guards and of the ladder that answers them; ``default`` stands for the numbers below.

Windows count applied updates. They are sizes of samples, so that a scale's ``duration_factor`` does not shrink them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from hpcstab.config.section import Section

VerdictName = Literal["continue", "backoff", "rollback", "halt"]
"""``continue`` warns; the others are rungs of the ladder."""


class StreakConfig(Section):
    """``max_skips`` refused steps in a row ask for a back-off; all for their norm alone, and norms are judged anew."""

    max_skips: int = Field(ge=1)


class SpikeConfig(Section):
    """A figure above the median of the last ``window`` updates by ``deviations`` robust standard deviations and above
    ``ratio`` medians is refused; not before ``min_updates``, with a threshold that is ``refresh_every`` updates old at
    most (and the guards' delay)."""

    window: int = Field(ge=2)
    min_updates: int = Field(ge=1)
    deviations: float = Field(gt=0)
    ratio: float = Field(ge=1)
    refresh_every: int = Field(ge=1)

    @model_validator(mode="after")
    def _window_fills(self) -> SpikeConfig:
        if self.min_updates > self.window:
            raise ValueError(f"min_updates {self.min_updates} never fit into a window of {self.window}")
        return self


class StalledConfig(Section):
    """The median loss of ``window`` updates must fall by ``min_fall`` of that of the window before it."""

    window: int = Field(ge=1)
    min_fall: float = Field(ge=0, lt=1)
    verdict: VerdictName


class DriftConfig(Section):
    """Running statistics of normalisation layers against their batches, at health checks.

    The mean in running standard deviations, variances as ratios.
    """

    max_mean_shift: float = Field(gt=0)
    max_var_ratio: float = Field(gt=1)
    max_var_growth: float = Field(gt=1)
    verdict: VerdictName


class HeadroomConfig(Section):
    """Scaled fp16 gradients against 65504, at health checks; ``max_falls`` of the loss scale in a row are allowed."""

    max_share: float = Field(gt=0, le=1)
    max_falls: int = Field(ge=0)
    verdict: VerdictName


class LadderConfig(Section):
    """What verdicts cost; the learning rate is multiplied by ``lr_factor``.

    After ``recover_after`` applied updates without a verdict the last rung is given back, over as many more; 0: none.
    """

    lr_factor: float = Field(gt=0, lt=1)
    max_backoffs: int = Field(ge=0)
    max_rollbacks: int = Field(ge=0)
    recover_after: int = Field(ge=0)


class GuardsConfig(Section):
    """All guards; null switches one off."""

    streak: StreakConfig
    loss_spike: SpikeConfig | None
    norm_spike: SpikeConfig | None
    stalled: StalledConfig | None
    batchnorm: DriftConfig | None
    headroom: HeadroomConfig | None
    ladder: LadderConfig

    @classmethod
    def is_value(cls) -> bool:
        return True

    def __str__(self) -> str:
        """``default``, with what differs from it."""
        own, default = dict(_leaves(self.model_dump())), dict(_leaves(DEFAULT))
        changed = [f"{key}={value}" for key, value in own.items() if (key, value) not in default.items()]
        return f"default with {', '.join(changed)}" if changed else "default"


DEFAULT: dict[str, Any] = {
    "streak": {"max_skips": 3},
    "loss_spike": {"window": 128, "min_updates": 32, "deviations": 10.0, "ratio": 4.0, "refresh_every": 16},
    "norm_spike": {"window": 128, "min_updates": 32, "deviations": 10.0, "ratio": 10.0, "refresh_every": 16},
    "stalled": {"window": 1000, "min_fall": 0.0, "verdict": "continue"},
    "batchnorm": {"max_mean_shift": 5.0, "max_var_ratio": 100.0, "max_var_growth": 100.0, "verdict": "continue"},
    "headroom": {"max_share": 0.25, "max_falls": 2, "verdict": "continue"},
    "ladder": {"lr_factor": 0.5, "max_backoffs": 2, "max_rollbacks": 2, "recover_after": 1000},
}
"""What ``guards: default`` means; config.yaml of a run and its signature hold the numbers."""


def _from_word(value: object) -> object:
    if isinstance(value, str):
        if value not in ("none", "default"):
            raise ValueError(f"got {value!r}; allowed are none, default, or a mapping with {', '.join(DEFAULT)}")
        return DEFAULT if value == "default" else None
    return value


def _as_word(value: GuardsConfig | None) -> object:
    return "none" if value is None else value.model_dump()


Guards = Annotated[GuardsConfig | None, BeforeValidator(_from_word), PlainSerializer(_as_word)]
"""``none``, ``default`` or the whole section."""


def guards_text(value: object) -> str:
    """The guards of a config.yaml in a word and what differs from it: ``none``, ``default with headroom=None``."""
    if isinstance(value, str):
        return value
    try:
        return str(GuardsConfig.model_validate(value))
    except ValidationError:
        return "not readable by this version"


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found
