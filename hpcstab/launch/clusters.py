"""Where runs are trained: ``jobs/clusters/<name>.yaml``, the only place for facts about a site."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hpcstab.campaign import parse_seeds
from hpcstab.config import Section, find_yaml, read_yaml_mapping, validate_section, yaml_names
from hpcstab.errors import EXIT_WRONG_REQUEST, ConfigError, LaunchError
from hpcstab.launch.machine import gpu_devices, num_cores

DEFAULT_CLUSTER = "local"
_FOLDER = "jobs/clusters"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:,=@/+-]*")


def _safe_token(value: str) -> str:
    if not _SAFE.fullmatch(value):
        raise ValueError(f"got {value!r}; it reaches a batch script, so only letters, digits and _.:,=@/+- are allowed")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"got {value!r}; a control character or a newline is not allowed")
    return value


def _seeds(value: str) -> str:
    try:
        parse_seeds(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return value


def _count_or_auto(least: int) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value != "auto" and (type(value) is not int or value < least):
            raise ValueError(f"got {value!r}; allowed are auto and whole numbers from {least}")
        return value

    return BeforeValidator(check)


Token = Annotated[str, AfterValidator(_safe_token)]
Line = Annotated[str, AfterValidator(_printable)]


class SlurmSettings(Section):
    """What reaches ``sbatch``. ``gpus_per_node``: what a node has; null leaves an option out."""

    partition: Token
    account: Token | None
    gres: Token
    constraint: Token | None
    gpus_per_node: int = Field(ge=0)
    cpus_per_task: int = Field(ge=1)
    mem_gib: int = Field(ge=1)
    signal_lead_s: int = Field(ge=10)


class Cluster(Section):
    """One place to train, complete.

    ``max_parallel`` auto: as many runs as there are cores for them, and with GPUs one for each share of
    ``gpus_per_run``. ``gpus_per_run`` auto: one where there are any. ``time_limit_min`` counts from
    when a run starts, not from when it is queued.
    """

    name: Token
    about: Line
    executor: Literal["local", "slurm"]
    default_scale: Token
    default_seeds: Annotated[str, AfterValidator(_seeds)]
    max_parallel: Annotated[int | Literal["auto"], _count_or_auto(1)]
    threads_per_run: int = Field(ge=1)
    gpus_per_run: Annotated[int | Literal["auto"], _count_or_auto(0)]
    time_limit_min: int = Field(ge=1)
    slurm: SlurmSettings | None

    @model_validator(mode="after")
    def _settings_of_its_executor(self) -> Cluster:
        if (self.executor == "slurm") != (self.slurm is not None):
            raise ValueError(f"executor {self.executor} {'needs' if self.slurm is None else 'has no'} section 'slurm'")
        return self


def load_cluster(name: str, configs: Path | None = None) -> Cluster:
    """``jobs/clusters/<name>.yaml``.

    Raises:
        ConfigError: unknown, or its YAML is wrong; with file and key.
    """
    path = find_yaml(_FOLDER, name, "cluster", configs)
    values = read_yaml_mapping(path)
    if "name" in values:
        raise ConfigError(f"{path}: unknown key 'name'. A cluster is named by its file")
    return validate_section(Cluster, {"name": name, **values}, str(path))


def cluster_names(configs: Path | None = None) -> list[str]:
    """All clusters with a YAML, sorted."""
    return yaml_names(_FOLDER, configs)


def choose_cluster(flag: str | None, configs: Path | None = None) -> Cluster:
    """The cluster of ``--cluster``, else of HPCSTAB_CLUSTER, else ``local``."""
    from_environment = os.environ.get("HPCSTAB_CLUSTER")
    if flag is None and from_environment:
        try:
            return load_cluster(from_environment, configs)
        except ConfigError as error:
            raise ConfigError(f"HPCSTAB_CLUSTER: {error}") from None
    return load_cluster(DEFAULT_CLUSTER if flag is None else flag, configs)


def why_unusable(cluster: Cluster) -> str | None:
    """Why nothing can be submitted to the cluster from here; None where it can."""
    if cluster.executor != "local":
        return f"this version submits to local clusters only, and '{cluster.name}' is a {cluster.executor} cluster"
    available = len(gpu_devices() or ())
    if cluster.gpus_per_run != "auto" and cluster.gpus_per_run > available:
        return f"cluster '{cluster.name}' asks for {cluster.gpus_per_run} GPUs a run; here are {available}"
    return None


def refuse_unusable(cluster: Cluster) -> None:
    """Raise a LaunchError where nothing can be submitted to the cluster from here."""
    reason = why_unusable(cluster)
    if reason:
        raise LaunchError(f"{reason}; see `hpcstab clusters`", exit_code=EXIT_WRONG_REQUEST)


def gpus_per_run(cluster: Cluster) -> int:
    """GPUs that a run gets on this machine."""
    if cluster.gpus_per_run != "auto":
        return cluster.gpus_per_run
    return 1 if gpu_devices() else 0


def parallel_runs(cluster: Cluster) -> int:
    """How many runs train at a time on this machine, at least 1."""
    if cluster.max_parallel != "auto":
        return cluster.max_parallel
    limit = num_cores() // cluster.threads_per_run
    if gpus := gpus_per_run(cluster):
        limit = min(limit, len(gpu_devices() or ()) // gpus)
    return max(1, limit)
