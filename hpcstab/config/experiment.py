"""A model's YAML as an object: base, fixes, variants, scales, compare, failure, claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from hpcstab.config.common import RunConfig
from hpcstab.config.locate import NAME
from hpcstab.config.section import Section

Names = Annotated[tuple[str, ...], Strict(False)]
Interval = Annotated[tuple[float | None, float | None], Strict(False)]
FixKind = Literal["cure", "limit", "mask", "upkeep", "flaw"]


class Fix(Section):
    """A named set of overrides. ``kind`` says what it does to the failure, ``why`` for which reason.

    ``cure`` removes the cause, ``limit`` bounds or delays it, ``mask`` hides it, ``upkeep`` does not
    change the numbers of the training, ``flaw`` is a known mistake made on purpose.
    """

    kind: FixKind
    why: str = Field(min_length=1)
    set: dict[str, Any] = Field(min_length=1)


class Compare(Section):
    """What decides between two runs, declared before any run and hashed into every report.

    ``margin`` is in the unit of ``primary``. ``hierarchy``: a finite run beats one that failed; of two
    failed the later failure wins; of two finite the better primary metric, beyond the margin.
    ``training_only``: keys of ``data`` that leave the held-out samples as they are.
    """

    horizon_steps: int = Field(ge=1)
    primary: str
    margin: float = Field(ge=0)
    hierarchy: Annotated[tuple[Literal["finite", "later_failure", "better_primary"], ...], Strict(False)]
    training_only: Names = ()


class FailureCondition(Section):
    """A condition on a column of metrics.csv that counts as failure beyond non-finite values."""

    column: str
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> FailureCondition:
        if self.above is None and self.below is None:
            raise ValueError("a failure condition states 'above', 'below' or both")
        return self


class Claim(Section):
    """What the write-up says, so that the report can answer: held, refuted, not testable at this scale.

    ``metric`` is a column of runs.csv. It must lie in ``range`` (null: open end), or, with
    ``below_variant``, be smaller than in that variant's run of the same seed. ``scales`` lists where the
    claim can be tested (empty: everywhere), ``needs`` what the machine must have.
    """

    says: str
    where: str
    variant: str
    metric: str
    range: Interval | None = None
    below_variant: str | None = None
    scales: Names = ()
    needs: Literal["cuda"] | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Claim:
        if (self.range is None) == (self.below_variant is None):
            raise ValueError("a claim states 'range' or 'below_variant', exactly one of the two")
        return self


class ExperimentFile(Section):
    """The top level of ``configs/<model>.yaml``."""

    model: str
    about: str
    base: dict[str, Any]
    fixes: dict[str, Fix]
    variants: Mapping[str, Names]
    scales: dict[str, dict[str, Any]]
    compare: Compare
    failure: Annotated[tuple[FailureCondition, ...], Strict(False)]
    claims: Annotated[tuple[Claim, ...], Strict(False)]

    @model_validator(mode="after")
    def _names(self) -> ExperimentFile:
        for word, names in (("fix", self.fixes), ("variant", self.variants), ("scale", self.scales)):
            for name in names:
                if not NAME.fullmatch(name):
                    raise ValueError(f"{word} name '{name}': names are {NAME.pattern}")
        return self


@dataclass(frozen=True)
class Experiment:
    """One model's YAML, read and checked whole: every fix, variant and scale resolves."""

    name: str
    path: Path
    file: ExperimentFile
    config_class: type[RunConfig]

    @property
    def fix_order(self) -> list[str]:
        """Names of the fixes in canonical (YAML) order."""
        return list(self.file.fixes)
