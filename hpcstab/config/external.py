"""Loading a model that lives outside this repository."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from hpcstab.errors import ConfigError


def load_object(reference: str, origin: str) -> object:
    """What ``package.module:Name`` or ``path/to/file.py:Name`` names.

    A file is found from the working folder or from the folder of the YAML that names it.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"{origin}: {reference!r} is not of the form package.module:Task or file.py:Task")
    try:
        module = _load_file(place, origin) if place.endswith(".py") else importlib.import_module(place)
    except ImportError as error:
        raise ConfigError(f"{origin}: model '{reference}' cannot be imported: {error}") from None
    if not hasattr(module, name):
        raise ConfigError(f"{origin}: '{place}' has no '{name}'")
    return getattr(module, name)


def _load_file(place: str, origin: str) -> object:
    candidates = [Path(place), Path(origin).parent / place]
    path = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ConfigError(f"{origin}: model file '{place}' not found here nor beside the YAML")
    module_name = f"hpcstab_external_{path.stem}"
    if module_name in sys.modules and getattr(sys.modules[module_name], "__file__", None) == str(path):
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{origin}: model file '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module
