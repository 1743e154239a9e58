"""A section of a config: strict, frozen, complete; and errors that teach.

Sections have no defaults: a YAML's base is the whole config of the failing state, so that a reader
sees every number that made the run.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict
from pydantic_core import ErrorDetails

from hpcstab.errors import ConfigError


class Section(BaseModel):
    """Base of all config classes: unknown keys and wrong types are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def is_value(cls) -> bool:
        """True where the section is set and shown as one value (a duration), not key by key."""
        return False


SectionType = TypeVar("SectionType", bound=BaseModel)

KEEPS_NUMBERS: JsonDict = {"changes_numbers": False}
"""``Field(json_schema_extra=KEEPS_NUMBERS)`` leaves a key out of the signature."""


def validate_section(cls: type[SectionType], values: object, origin: str, prefix: str = "") -> SectionType:
    """``values`` as ``cls``, or a ConfigError with origin, dotted path, what was got and what is allowed."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{origin}: {prefix or 'the file'} must be a mapping of keys to values, got {_shown(values)}")
    try:
        return cls.model_validate(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"{origin}: {_explain(cls, first, prefix)}") from None


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``, did you mean 'x'?`` where a valid name is close, else nothing."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def leaf_keys(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All (dotted key, value) pairs of a section, in the order of its fields; ``losses.phases.kl`` too."""
    for name in type(section).model_fields:
        yield from _leaves(f"{prefix}{name}", getattr(section, name))


def numberless_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of fields that cannot change the numbers of a run."""
    for name, field in cls.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("changes_numbers") is False:
            yield f"{prefix}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numberless_keys(field.annotation, f"{prefix}{name}.")


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Section) and not value.is_value():
        yield from leaf_keys(value, f"{path}.")
    elif isinstance(value, dict) and value:
        for name, entry in value.items():
            # a term with one phase is set key by key: losses.phases.kl.ramp; several are one value
            yield from _leaves(f"{path}.{name}", entry[0] if isinstance(entry, tuple) and len(entry) == 1 else entry)
    else:
        yield path, value


def _explain(cls: type[BaseModel], error: ErrorDetails, prefix: str) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join([part for part in [prefix, *location] if part])
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(cls, location[:-1])
        hint = nearest(location[-1], allowed)
        return f"unknown key '{path}'{hint or '.'} Allowed here: {', '.join(allowed)}"
    if error["type"] == "missing":
        return f"key '{path}' is missing: a base is complete, state its value"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if error["type"] == "value_error":
        return f"'{path}': {message}" if path else message
    return f"'{path}': got {_shown(error['input'])}, but {message}"


def _fields_at(cls: type[BaseModel], location: list[str]) -> list[str]:
    for name in location:
        field = cls.model_fields.get(name)
        inner = _model_of(field.annotation) if field else None
        if inner is None:
            break
        cls = inner
    return list(cls.model_fields)


def _model_of(annotation: object) -> type[BaseModel] | None:
    """The config class inside an annotation such as ``Clip | None`` or ``dict[str, Fix]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, dict, tuple, list):
        for inner in get_args(annotation):
            found = _model_of(inner)
            if found is not None:
                return found
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
