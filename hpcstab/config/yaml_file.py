"""Strict YAML: a key twice is an error, ``1e-3`` is a number, only ``true`` and ``false`` are booleans."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import yaml

from hpcstab.errors import ConfigError


class StrictLoader(yaml.SafeLoader):
    """The YAML 1.2 reading of scalars, and no duplicate keys."""


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a name", key_node.start_mark)
        if key in keys:
            raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands here twice", key_node.start_mark)
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """The file as a mapping, or a ConfigError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse_yaml_mapping(text, str(path))


def parse_yaml_mapping(text: str, origin: str) -> dict[str, Any]:
    """``text`` as a mapping; ``origin`` names it in errors."""
    values = _parse(text, origin)
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: must be a mapping of keys to values, got {type(values).__name__}")
    return values


def parse_yaml_value(text: str, origin: str) -> Any:
    """One value as it would be read from a YAML file, e.g. of ``--set optimizer.lr=1e-3``."""
    return _parse(text, origin)


def _parse(text: str, origin: str) -> Any:
    try:
        return copy.deepcopy(_loaded(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin}{line}: {error.problem or 'is not valid YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: is not valid YAML: {str(error).splitlines()[0]}") from None


@functools.lru_cache(maxsize=256)
def _loaded(text: str) -> Any:
    """Read once in a process: 25 ms a model or run, and the runs of a campaign share few texts."""
    return yaml.load(text, Loader=StrictLoader)
