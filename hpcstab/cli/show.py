"""``hpcstab show MODEL[@VARIANT] [--diff]``: the resolved config, or what differs between variants and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcstab.cli.options import AsJson, Configs, Scale, Settings
from hpcstab.cli.terminal import print_json, print_table

if TYPE_CHECKING:
    from hpcstab.config import Experiment


def show(
    target: Annotated[str, typer.Argument(metavar="MODEL[@VARIANT]", help="e.g. swae3d or swae3d@before+clip")],
    diff: Annotated[
        bool, typer.Option("--diff", help="What differs between the variants, and which fix did it.")
    ] = False,
    scale: Scale = None,
    settings: Settings = None,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """The resolved config of a variant; with --diff, before beside after and cured."""
    from hpcstab.config import distinct_variants, load_experiment, parse_variant
    from hpcstab.errors import ConfigError

    model, variant = split_target(target)
    experiment = load_experiment(model, configs)
    scale = scale or next(iter(experiment.file.scales))
    if not diff:
        _show_config(experiment, variant or "before", scale, settings or [], as_json)
        return
    if settings:
        raise ConfigError("--diff compares the variants as they stand in the YAML; leave --set away")
    variants = distinct_variants(experiment)
    if variant:
        name = parse_variant(experiment, variant).name
        variants = [*variants, name] if name not in variants else variants
    _show_differences(experiment, variants, scale, as_json)


def split_target(target: str) -> tuple[str, str | None]:
    """``swae3d@after`` as (model, variant or None)."""
    model, _, variant = target.partition("@")
    return model, variant or None


def shown_value(value: Any) -> str:
    """A config value as YAML users would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(shown_value(entry) for entry in value)}]"
    return str(value)


def _show_config(experiment: Experiment, variant: str, scale: str, settings: list[str], as_json: bool) -> None:
    from hpcstab.config import leaf_keys, parse_overrides, resolve

    run = resolve(experiment, variant, scale, parse_overrides(settings))
    if as_json:
        print_json({"label": run.label, "signature": run.signature, "config": run.config.model_dump(mode="json")})
        return
    print(f"{experiment.name}@{run.label} at scale {scale}, signature {run.signature[:8]}")
    print(f"fixes: {', '.join(run.variant.fixes) or 'none'}")
    _print_overridden(experiment, run.variant.fixes)
    print_table(("parameter", "value"), [(key, shown_value(value)) for key, value in leaf_keys(run.config)])


def _show_differences(experiment: Experiment, variants: list[str], scale: str, as_json: bool) -> None:
    from hpcstab.config import differences, parse_variant

    rows = differences(experiment, variants, scale)
    fixes = experiment.file.fixes
    if as_json:
        print_json(
            [
                {"key": row.key, "values": dict(zip(variants, row.values, strict=True)), "set_by": row.set_by}
                for row in rows
            ]
        )
        return
    cells = []
    for row in rows:
        setters = list(dict.fromkeys(fix for fix in row.set_by if fix))
        several = len(setters) > 1
        why = "; ".join(f"{fix}: {fixes[fix].why}" if several else fixes[fix].why for fix in setters)
        named = ", ".join(f"{fix} ({fixes[fix].kind})" for fix in setters)
        cells.append((row.key, *(shown_value(value) for value in row.values), named, why))
    print_table(("parameter", *variants, "fix", "why"), cells, title=f"{experiment.name} at scale {scale}")
    _print_overridden(experiment, *(parse_variant(experiment, variant).fixes for variant in variants))


def _print_overridden(experiment: Experiment, *variants: tuple[str, ...]) -> None:
    from hpcstab.config import overridden

    for key, earlier, later in dict.fromkeys(pair for fixes in variants for pair in overridden(experiment, fixes)):
        print(f"note: fixes '{earlier}' and '{later}' both set {key}; the later in YAML order, '{later}', wins")
