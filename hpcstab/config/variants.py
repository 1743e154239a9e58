"""Variant expressions: ``after``, ``before+clip``, ``after-lower_lr``; one canonical form each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcstab.config.experiment import Experiment
from hpcstab.config.locate import NAME
from hpcstab.config.section import nearest
from hpcstab.errors import ConfigError

_EXPRESSION = re.compile(rf"{NAME.pattern}(?:[+-]{NAME.pattern})*")
_TERM = re.compile(rf"([+-])({NAME.pattern})")


@dataclass(frozen=True)
class Variant:
    """A base plus fixes, in canonical order; ``name`` is the canonical expression."""

    name: str
    fixes: tuple[str, ...]


def variant_names(experiment: Experiment) -> list[str]:
    """The named variants, ``before`` first (it is the base unless the YAML names it)."""
    return ["before", *(name for name in experiment.file.variants if name != "before")]


def distinct_variants(experiment: Experiment) -> list[str]:
    """The named variants without second names for the same fixes (``round1``, where that is ``before``)."""
    return list(dict.fromkeys(parse_variant(experiment, name).name for name in variant_names(experiment)))


def parse_variant(experiment: Experiment, expression: str) -> Variant:
    """The variant that ``expression`` names, in canonical form.

    Equal sets of fixes have one name: a named variant where there is one, else the expression with
    its fixes in YAML order.

    Raises:
        ConfigError: not an expression, an unknown name, a fix added or removed that already is or is not there.
    """
    if not _EXPRESSION.fullmatch(expression):
        raise ConfigError(
            f"variant {expression!r} is not an expression: a variant, then +fix or -fix, e.g. before+clip"
        )
    anchor = re.split(r"[+-]", expression, maxsplit=1)[0]
    names = variant_names(experiment)
    if anchor not in names:
        raise ConfigError(
            f"{experiment.name}: unknown variant '{anchor}'{nearest(anchor, names) or '.'}"
            f" There are: {', '.join(names)}"
        )
    start = _fixes_of(experiment, anchor)
    fixes = list(start)
    for sign, fix in _TERM.findall(expression[len(anchor) :]):
        _apply(experiment, fixes, sign, fix, expression)
    return _canonical(experiment, anchor, start, fixes)


def _fixes_of(experiment: Experiment, variant: str) -> list[str]:
    return list(experiment.file.variants.get(variant, ()))


def _apply(experiment: Experiment, fixes: list[str], sign: str, fix: str, expression: str) -> None:
    if fix not in experiment.fix_order:
        raise ConfigError(
            f"{experiment.name}: unknown fix '{fix}' in '{expression}'{nearest(fix, experiment.fix_order) or '.'}"
            f" There are: {', '.join(experiment.fix_order)}"
        )
    if sign == "+" and fix in fixes:
        raise ConfigError(f"{experiment.name}: '{expression}' adds fix '{fix}', which is in it already")
    if sign == "-" and fix not in fixes:
        raise ConfigError(f"{experiment.name}: '{expression}' removes fix '{fix}', which is not in it")
    if sign == "+":
        fixes.append(fix)
    else:
        fixes.remove(fix)


def _canonical(experiment: Experiment, anchor: str, start: list[str], fixes: list[str]) -> Variant:
    order = experiment.fix_order
    ordered = tuple(sorted(fixes, key=order.index))
    for name in variant_names(experiment):
        if set(_fixes_of(experiment, name)) == set(fixes):
            return Variant(name, ordered)
    added = sorted(set(fixes) - set(start), key=order.index)
    removed = sorted(set(start) - set(fixes), key=order.index)
    return Variant(anchor + "".join(f"+{fix}" for fix in added) + "".join(f"-{fix}" for fix in removed), ordered)
