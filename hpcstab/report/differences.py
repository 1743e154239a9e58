"""What differs between the configs of the variants, which fix set it, of which kind and why.

Read from config.yaml and run.json of the runs alone, so that copied folders suffice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcstab.config.guards import guards_text
from hpcstab.interventions import declared_faults
from hpcstab.report.sections import Group, Section
from hpcstab.report.words import printable

_DURATION_KEYS = {"epochs", "steps"}


@dataclass(frozen=True)
class Setter:
    """What set a value: a fix, or ``--set``."""

    name: str
    kind: str
    why: str


@dataclass(frozen=True)
class ConfigDifference:
    """One key that the groups do not share; ``values`` and ``setters`` follow the order of the groups."""

    key: str
    values: tuple[str, ...]
    setters: tuple[Setter | None, ...]


def config_differences(section: Section) -> list[ConfigDifference]:
    """Keys whose values differ, in the order of the config; a group whose config is unreadable shows ``?``."""
    configs = [_config(group) for group in section.groups]
    keys = dict.fromkeys(key for config in configs for key in config)
    found = []
    for key in keys:
        values = [show_value(config.get(key)) if config else "?" for config in configs]
        if len({value for value, config in zip(values, configs, strict=True) if config}) > 1:
            setters = tuple(setter_of(group, key) for group in section.groups)
            found.append(ConfigDifference(key, tuple(values), setters))
    return found


def setter_of(group: Group, key: str) -> Setter | None:
    """The override, else the last fix of the variant that sets the key; None where the base did."""
    overridden = [name for name in group.overrides if _covers(name, key)]
    if overridden:
        return Setter("--set", "override", "set on the command line")
    fixes = [fix for fix in group.runs[0].identity["fixes"] if any(_covers(name, key) for name in fix.get("set", {}))]
    return setter(fixes[-1]) if fixes else None


def declared_flaws(section: Section) -> list[str]:
    """Known mistakes and triggers that were put in on purpose, each as a sentence."""
    lines = []
    for group in section.groups:
        flaws = [fix for fix in group.runs[0].identity["fixes"] if fix.get("kind") == "flaw"]
        lines += [
            f"On purpose, {group.label} carries the flaw {printable(fix['name'])}: {printable(fix.get('why'))}"
            for fix in flaws
        ]
        data = group.runs[0].config.get("data", {})
        if data.get("normalize") == "none":
            lines.append(f"As declared, {group.label} trains on data that are not normalised")
    return lines + _declared_faults(section)


def _declared_faults(section: Section) -> list[str]:
    """The trigger that a failure needs, once for all variants that have it."""
    carriers: dict[str, list[str]] = {}
    for group in section.groups:
        faults = declared_faults(group.runs[0].config)
        if faults:
            text = ", ".join(
                f"{printable(fault['kind'])} in the batch of step {printable(fault['step'])}" for fault in faults
            )
            carriers.setdefault(text, []).append(group.label)
    all_labels = [group.label for group in section.groups]
    named = {text: "every variant" if labels == all_labels else ", ".join(labels) for text, labels in carriers.items()}
    return [f"Declared in data.faults of {who}: {text}" for text, who in named.items()]


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a config; a duration is one value, and so are the guards, in a word where there is one."""
    for key, value in config.items():
        if f"{prefix}{key}" == "stability.guards":
            yield "stability.guards", guards_text(value)
        elif isinstance(value, Mapping) and value and not set(value) <= _DURATION_KEYS:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def show_value(value: Any) -> str:
    """A config value as a reader writes it."""
    if isinstance(value, Mapping) and value and set(value) <= _DURATION_KEYS:
        return next((f"{amount:g} {unit}" for unit, amount in value.items() if amount is not None), "none")
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return printable(value)


def _config(group: Group) -> dict[str, Any]:
    readable = next((run.config for run in group.runs if run.config), {})
    return {key: value for key, value in leaves(readable) if key != "model"}


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.")


def setter(fix: Mapping[str, Any]) -> Setter:
    """A fix as run.json tells it."""
    return Setter(*(printable(fix.get(entry, "")) for entry in ("name", "kind", "why")))
