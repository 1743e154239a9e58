"""The config of a rerun: that of its parent, as the parent's folder has it, with fixes and overrides added.

What the parent trained is not looked up in the YAML, which may have changed since or be absent: the YAML is asked for
the added fixes alone, and for the order in which fixes apply.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcstab.config.common import RunConfig
from hpcstab.config.experiment import Experiment, ExperimentFile, Fix
from hpcstab.config.guards import DEFAULT
from hpcstab.config.load import config_class_of
from hpcstab.config.resolve import ResolvedRun, apply_settings, signature
from hpcstab.config.section import nearest, validate_section
from hpcstab.config.variants import Variant, parse_variant
from hpcstab.errors import ConfigError


@dataclass(frozen=True)
class Branched:
    """What a rerun trains.

    ``experiment`` is the parent's folder read as an experiment: its base is the parent's config. ``dropped``: overrides
    of the parent that an added fix sets anew.
    """

    experiment: Experiment
    resolved: ResolvedRun
    dropped: tuple[str, ...]


def branch(
    identity: Mapping[str, Any],
    values: Mapping[str, Any],
    origin: Path,
    added: Sequence[str] = (),
    overrides: tuple[tuple[str, Any], ...] = (),
    experiment: Experiment | None = None,
) -> Branched:
    """The parent's config with fixes and overrides added; without any, exactly the parent's.

    Args:
        identity: the parent's run.json.
        values: the parent's config.yaml.
        origin: the parent's config.yaml as a path, for errors.
        added: names of fixes of ``experiment``, the model's YAML.
        overrides: of ``--set``; they come last.

    Raises:
        ConfigError: a fix is unknown, in already or without effect, or the result is no valid config.
    """
    own = {entry["name"]: _fix(entry, origin) for entry in identity["fixes"]}
    fixes = _in_order(own | _new_fixes(own, added, experiment, str(identity["model"])), experiment)
    parent = _folder_as_experiment(identity, values, origin, fixes)
    for name in added:
        without = {other: fix for other, fix in fixes.items() if other != name}
        if _config(parent, fixes, ()) == _config(parent, without, ()):
            raise ConfigError(f"--with {name}: changes nothing in {identity['run_id']}; leave it away")
    newly_set = [key for name in added for key in fixes[name].set]
    kept = {key: value for key, value in identity["overrides"].items() if not _touches(key, newly_set)}
    dropped = tuple(key for key in identity["overrides"] if key not in kept and key not in dict(overrides))
    kept = {key: value for key, value in kept.items() if not _touches(key, list(dict(overrides)))}
    all_overrides = tuple(sorted({**kept, **dict(overrides)}.items()))
    if added or overrides:
        config = _config(parent, fixes, all_overrides)
    else:
        config = validate_section(parent.config_class, parent.file.base, str(origin))
    resolved = ResolvedRun(
        model=parent.name,
        variant=_variant(str(identity["variant"]), list(own), added, tuple(fixes), experiment),
        scale=str(identity["scale"]),
        overrides=all_overrides,
        config=config,
        horizon_steps=parent.file.compare.horizon_steps,
        signature=signature(parent.file.model, config),
    )
    return Branched(parent, resolved, dropped)


def _folder_as_experiment(
    identity: Mapping[str, Any], values: Mapping[str, Any], origin: Path, fixes: Mapping[str, Fix]
) -> Experiment:
    reference = str(values["model"])
    as_file = {
        "model": reference,
        "about": "",
        "base": {key: value for key, value in values.items() if key != "model"},
        "fixes": {name: fix.model_dump() for name, fix in fixes.items()},
        "variants": {},
        "scales": {},
        **{key: identity[key] for key in ("compare", "failure", "claims")},
    }
    file = validate_section(ExperimentFile, as_file, str(origin))
    return Experiment(str(identity["model"]), origin, file, config_class_of(reference, str(origin)))


def _fix(entry: Mapping[str, Any], origin: Path) -> Fix:
    return validate_section(Fix, {key: value for key, value in entry.items() if key != "name"}, str(origin))


def _new_fixes(
    own: Mapping[str, Fix], added: Sequence[str], experiment: Experiment | None, model: str
) -> dict[str, Fix]:
    known: Mapping[str, Fix] = experiment.file.fixes if experiment is not None else {}
    for position, name in enumerate(added):
        if name in own:
            raise ConfigError(f"--with {name}: the parent has this fix already; it has {', '.join(own)}")
        if name in added[:position]:
            raise ConfigError(f"--with {name} stands there twice")
        if name not in known:
            rest = [other for other in known if other not in own]
            raise ConfigError(
                f"--with: {model} has no fix {name!r}{nearest(name, known) or '.'}"
                f" There are: {', '.join(rest) or 'none'}"
            )
    return {name: known[name] for name in added}


def _in_order(fixes: Mapping[str, Fix], experiment: Experiment | None) -> dict[str, Fix]:
    """In YAML order; what the YAML does not know any more comes first."""
    order = experiment.fix_order if experiment is not None else []
    return dict(sorted(fixes.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))


def _touches(key: str, settings: Sequence[str]) -> bool:
    """Whether one of the settings is the key, a part of it, or what it is a part of: then the later word counts."""
    return any(key == s or key.startswith(f"{s}.") or s.startswith(f"{key}.") for s in settings)


def _config(parent: Experiment, fixes: Mapping[str, Fix], overrides: tuple[tuple[str, Any], ...]) -> RunConfig:
    """The parent's own fixes are applied again, so that of two on one key the later in YAML order wins as ever."""
    values = copy.deepcopy(parent.file.base)
    for name, fix in fixes.items():
        apply_settings(values, fix.set, f"fix '{name}'")
    if values["stability"].get("guards") == "default" and overrides:
        values["stability"]["guards"] = copy.deepcopy(DEFAULT)  # so that --set reaches into it
    apply_settings(values, dict(overrides), "--set")
    return validate_section(parent.config_class, values, f"{parent.path} with --with and --set")


def _variant(
    parent: str, own: list[str], added: Sequence[str], fixes: tuple[str, ...], experiment: Experiment | None
) -> Variant:
    """The canonical name where the YAML still knows the parent's variant as it was, else the parent's and the rest."""
    plain = parent + "".join(f"+{name}" for name in fixes if name in added)
    if experiment is None or not added:
        return Variant(parent, fixes)
    try:
        known = parse_variant(experiment, parent)
        if sorted(known.fixes) == sorted(own):
            return parse_variant(experiment, parent + "".join(f"+{name}" for name in added))
    except ConfigError:
        pass  # renamed or gone since
    return Variant(plain, fixes)
