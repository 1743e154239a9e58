"""Strict YAML -> base + fixes + scale + overrides -> one frozen, complete config and its signature.

experiment = load_experiment("swae3d")
run = resolve(experiment, "before+clip", scale="quick", overrides=parse_overrides(["optimizer.lr=1e-3"]))
run.config.optimizer.lr
"""

from hpcstab.config.branch import Branched, branch
from hpcstab.config.common import DataConfig, FolderKind, LossesConfig, RunConfig, SourcedDataConfig
from hpcstab.config.difference import Difference, differences, overridden
from hpcstab.config.durations import Duration
from hpcstab.config.experiment import Claim, Compare, Experiment, FailureCondition
from hpcstab.config.external import load_object
from hpcstab.config.load import config_class_of, load_experiment, model_names
from hpcstab.config.locate import NAME, find_yaml, yaml_names
from hpcstab.config.resolve import ResolvedRun, parse_overrides, resolve, signature
from hpcstab.config.run_config import completed, read_run_config
from hpcstab.config.section import Section, leaf_keys, nearest, validate_section
from hpcstab.config.variants import Variant, distinct_variants, parse_variant, variant_names
from hpcstab.config.yaml_file import parse_yaml_value, read_yaml_mapping

__all__ = [
    "NAME",
    "Branched",
    "Claim",
    "Compare",
    "DataConfig",
    "Difference",
    "Duration",
    "Experiment",
    "FailureCondition",
    "FolderKind",
    "LossesConfig",
    "ResolvedRun",
    "RunConfig",
    "Section",
    "SourcedDataConfig",
    "Variant",
    "branch",
    "completed",
    "config_class_of",
    "differences",
    "distinct_variants",
    "find_yaml",
    "leaf_keys",
    "load_experiment",
    "load_object",
    "model_names",
    "nearest",
    "overridden",
    "parse_overrides",
    "parse_variant",
    "parse_yaml_value",
    "read_run_config",
    "read_yaml_mapping",
    "resolve",
    "signature",
    "validate_section",
    "variant_names",
    "yaml_names",
]
