"""Checks of a whole YAML, so that a mistake shows when it is read and not after a night in the queue."""

from __future__ import annotations

from hpcstab.config.experiment import Experiment
from hpcstab.config.resolve import HORIZON, resolve
from hpcstab.config.section import nearest, validate_section
from hpcstab.config.variants import parse_variant, variant_names
from hpcstab.errors import ConfigError


def check_experiment(experiment: Experiment) -> None:
    """Raise a ConfigError for the first mistake in base, fixes, variants, scales or claims."""
    origin = str(experiment.path)
    validate_section(experiment.config_class, experiment.file.base, origin, prefix="base")
    _check_variants(experiment, origin)
    _check_scales(experiment, origin)
    _check_fixes(experiment, origin)
    _check_claims(experiment, origin)
    _check_compare(experiment, origin)


def _check_fixes(experiment: Experiment, origin: str) -> None:
    for name in experiment.file.fixes:
        in_before = name in experiment.file.variants.get("before", ())
        resolve(experiment, f"before-{name}" if in_before else f"before+{name}", next(iter(experiment.file.scales)))


def _check_variants(experiment: Experiment, origin: str) -> None:
    order = experiment.fix_order
    for variant, fixes in experiment.file.variants.items():
        for fix in fixes:
            if fix not in order:
                raise ConfigError(
                    f"{origin}: variants.{variant}: unknown fix '{fix}'{nearest(fix, order) or '.'}"
                    f" There are: {', '.join(order)}"
                )
        if len(set(fixes)) < len(fixes):
            raise ConfigError(f"{origin}: variants.{variant}: a fix stands there twice")
    flaws = [fix for fix in experiment.file.variants.get("cured", ()) if experiment.file.fixes[fix].kind == "flaw"]
    if flaws:
        raise ConfigError(f"{origin}: variants.cured: '{flaws[0]}' is a flaw; cured holds none")


def _check_scales(experiment: Experiment, origin: str) -> None:
    if not experiment.file.scales:
        raise ConfigError(
            f"{origin}: scales: names no scale; 'full' is the write-up's size and may be empty: full: {{}}"
        )
    for scale, settings in experiment.file.scales.items():
        for key in settings:
            if key != HORIZON:
                _refuse_key_of_a_fix(experiment, scale, key, origin)
        for variant in variant_names(experiment):
            resolve(experiment, variant, scale)


def _refuse_key_of_a_fix(experiment: Experiment, scale: str, key: str, origin: str) -> None:
    for name, fix in experiment.file.fixes.items():
        for fixed in fix.set:
            if fixed == key or fixed.startswith(f"{key}.") or key.startswith(f"{fixed}."):
                raise ConfigError(
                    f"{origin}: scales.{scale}: sets '{key}', which fix '{name}' sets too; a scale changes only size"
                )


def _check_claims(experiment: Experiment, origin: str) -> None:
    for number, claim in enumerate(experiment.file.claims):
        for scale in claim.scales:
            if scale not in experiment.file.scales:
                raise ConfigError(f"{origin}: claims.{number}: unknown scale '{scale}'")
        for expression in (claim.variant, claim.below_variant):
            if expression is not None:
                parse_variant(experiment, expression)


def _check_compare(experiment: Experiment, origin: str) -> None:
    keys = list(experiment.file.base["data"])
    for key in experiment.file.compare.training_only:
        if key not in keys:
            raise ConfigError(
                f"{origin}: compare.training_only: data has no key '{key}'{nearest(key, keys) or '.'} It has:"
                f" {', '.join(keys)}"
            )
