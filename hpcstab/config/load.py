"""From a model's name to its checked YAML and its config class."""

from __future__ import annotations

import importlib
from pathlib import Path

from hpcstab.config.check import check_experiment
from hpcstab.config.common import RunConfig
from hpcstab.config.experiment import Experiment, ExperimentFile
from hpcstab.config.external import load_object
from hpcstab.config.locate import NAME, find_yaml, yaml_names
from hpcstab.config.section import validate_section
from hpcstab.config.yaml_file import read_yaml_mapping
from hpcstab.errors import ConfigError


def load_experiment(model: str, configs: Path | None = None) -> Experiment:
    """``configs/<model>.yaml``, checked whole.

    Raises:
        ConfigError: the model is unknown, or its YAML is wrong anywhere; with file and dotted path.
    """
    path = find_yaml("configs", model, "model", configs)
    file = validate_section(ExperimentFile, read_yaml_mapping(path), str(path))
    experiment = Experiment(model, path, file, config_class_of(file.model, str(path)))
    check_experiment(experiment)
    return experiment


def model_names(configs: Path | None = None) -> list[str]:
    """All models with a YAML, sorted."""
    return yaml_names("configs", configs)


def config_class_of(reference: str, origin: str) -> type[RunConfig]:
    """The config class of a model, loaded by name without torch for the models in this package.

    ``reference`` is a folder under ``hpcstab/models`` or, for a model outside this repository,
    ``package.module:Task`` or ``path/to/file.py:Task`` with the class as ``Task.Config``.
    """
    if ":" in reference:
        found = getattr(load_object(reference, origin), "Config", None)
    else:
        found = _shipped_config_class(reference, origin)
    if not (isinstance(found, type) and issubclass(found, RunConfig)):
        raise ConfigError(f"{origin}: model '{reference}' has no Config class that extends hpcstab.config.RunConfig")
    return found


def _shipped_config_class(reference: str, origin: str) -> object:
    if not NAME.fullmatch(reference):
        raise ConfigError(
            f"{origin}: model {reference!r} is neither a model of hpcstab nor 'package.module:Task' or 'file.py:Task'"
        )
    module = f"hpcstab.models.{reference}.config"
    try:
        return getattr(importlib.import_module(module), "Config", None)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise ConfigError(f"{origin}: there is no model '{reference}' in hpcstab/models") from None
        raise
