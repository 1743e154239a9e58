"""Where runs are trained: ``jobs/clusters/<name>.yaml``, the only place for facts about a site."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hpcstab.campaign import parse_seeds
from hpcstab.config import Section, find_yaml, read_yaml_mapping, validate_section, yaml_names
from hpcstab.errors import EXIT_WRONG_REQUEST, ConfigError, LaunchError
from hpcstab.launch import scheduler
from hpcstab.launch.machine import gpu_devices, num_cores

DEFAULT_CLUSTER = "local"
_FOLDER = "jobs/clusters"
_AS_MANY_AS_SLURM_STARTS = 1000
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
    """What reaches ``sbatch``. ``gpus_per_node``: what a node has; null leaves an option out.

    ``cpus_per_task`` and ``mem_gib`` are those of one rank of a run, which is one GPU's share of a node.
    """

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
    ``gpus_per_run``. ``gpus_per_run`` auto: one where there are any; more than a node has are whole nodes. Each GPU of
    a run has a process of its own, a rank; ``ranks_per_run`` is for runs without GPUs, several ranks on cores (auto:
    one). ``threads_per_run``: of each rank. ``time_limit_min`` counts from
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
    ranks_per_run: Annotated[int | Literal["auto"], _count_or_auto(1)] = "auto"
    time_limit_min: int = Field(ge=1)
    slurm: SlurmSettings | None

    @model_validator(mode="after")
    def _settings_of_its_executor(self) -> Cluster:
        if (self.executor == "slurm") != (self.slurm is not None):
            raise ValueError(f"executor {self.executor} {'needs' if self.slurm is None else 'has no'} section 'slurm'")
        return self

    @model_validator(mode="after")
    def _a_gpu_for_each_rank(self) -> Cluster:
        gpus = self.gpus_per_run
        if gpus == "auto" or gpus == 0:
            return self
        if self.ranks_per_run not in ("auto", gpus):
            raise ValueError(f"got ranks_per_run {self.ranks_per_run} and gpus_per_run {gpus}; each rank has one GPU")
        per_node = self.slurm.gpus_per_node if self.slurm is not None else 0
        if per_node and gpus > per_node and gpus % per_node:
            raise ValueError(f"got gpus_per_run {gpus}; beyond one node whole nodes, multiples of {per_node}")
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
    """The cluster of ``--cluster``, else of HPCSTAB_CLUSTER, else the one whose Slurm answers here, else ``local``.

    Raises:
        ConfigError: it is unknown, or the Slurm here has no YAML.
    """
    from_environment = os.environ.get("HPCSTAB_CLUSTER")
    if flag is None and from_environment:
        try:
            return load_cluster(from_environment, configs)
        except ConfigError as error:
            raise ConfigError(f"HPCSTAB_CLUSTER: {error}") from None
    if flag is not None:
        return load_cluster(flag, configs)
    name = _slurm_here()
    if name is None:
        return load_cluster(DEFAULT_CLUSTER, configs)
    if name not in cluster_names(configs):
        there_are = ", ".join(cluster_names(configs))
        raise ConfigError(
            f"this is the Slurm cluster '{name}', and there is no {_FOLDER}/{name}.yaml. There are: {there_are}. "
            "Write one, or name one with --cluster"
        )
    return load_cluster(name, configs)


def _slurm_here() -> str | None:
    """Slurm's name of its cluster; None where there is no Slurm or it does not answer."""
    if shutil.which("sbatch") is None:
        return None
    try:
        scheduler.ping()
        return scheduler.cluster_name()
    except LaunchError:
        return None


def _why_slurm_refuses(cluster: Cluster, slurm: SlurmSettings) -> LaunchError | None:
    """What Slurm itself would queue and then never start, or only say after run folders were made."""
    try:
        if shutil.which("sbatch") is None:
            return LaunchError(f"there is no sbatch here, and '{cluster.name}' is a Slurm cluster: use its login node")
        scheduler.ping()
        limits = scheduler.partition_limits(slurm.partition)
        if limits is None:
            there_are = ", ".join(scheduler.partition_names())
            return LaunchError(
                f"cluster '{cluster.name}': unknown partition '{slurm.partition}'. There are: {there_are}",
                exit_code=EXIT_WRONG_REQUEST,
            )
    except LaunchError as error:
        return error
    if limits.time_limit_min is not None and cluster.time_limit_min > limits.time_limit_min:
        return LaunchError(
            f"cluster '{cluster.name}': time_limit_min {cluster.time_limit_min} is more than partition "
            f"'{limits.name}' allows ({limits.time_limit_min:.0f}); Slurm would queue it for ever",
            exit_code=EXIT_WRONG_REQUEST,
        )
    return None


def why_unusable(cluster: Cluster) -> str | None:
    """Why nothing can be submitted to the cluster from here; None where it can."""
    error = refusal(cluster)
    return str(error) if error else None


def refusal(cluster: Cluster) -> LaunchError | None:
    """The same with its exit code: a wrong request, or no Slurm that answers here."""
    if cluster.slurm is not None:
        return _why_slurm_refuses(cluster, cluster.slurm)
    reason = _why_local_refuses(cluster)
    return LaunchError(reason, exit_code=EXIT_WRONG_REQUEST) if reason else None


def _why_local_refuses(cluster: Cluster) -> str | None:
    available = len(gpu_devices() or ())
    if cluster.gpus_per_run != "auto" and cluster.gpus_per_run > available:
        several = "; ranks_per_run in its file is for several ranks on cores" if not available else ""
        return f"cluster '{cluster.name}' asks for {cluster.gpus_per_run} GPUs a run; here are {available}{several}"
    return None


def refuse_unusable(cluster: Cluster) -> None:
    """Raise a LaunchError where nothing can be submitted to the cluster from here."""
    error = refusal(cluster)
    if error:
        raise LaunchError(f"{error}; see `hpcstab clusters`", exit_code=error.exit_code)


def gpus_per_run(cluster: Cluster) -> int:
    """GPUs that a run gets, on this machine or on a node of the cluster."""
    if cluster.gpus_per_run != "auto":
        return cluster.gpus_per_run
    if cluster.slurm is not None:
        return min(1, cluster.slurm.gpus_per_node)
    return 1 if gpu_devices() else 0


def with_gpus(cluster: Cluster, gpus: int | None) -> Cluster:
    """The cluster with so many GPUs for each run; None: as its file says.

    Raises:
        ConfigError: its nodes cannot give so many.
    """
    if gpus is None:
        return cluster
    values = cluster.model_dump() | {"gpus_per_run": gpus, "ranks_per_run": "auto"}
    return validate_section(Cluster, values, f"--gpus {gpus} on cluster '{cluster.name}'")


def ranks_per_run(cluster: Cluster) -> int:
    """Processes that train a run together: one for each of its GPUs."""
    if gpus := gpus_per_run(cluster):
        return gpus
    return 1 if cluster.ranks_per_run == "auto" else cluster.ranks_per_run


def nodes_per_run(cluster: Cluster) -> int:
    """Nodes that a run spans: as many as its GPUs fill."""
    if cluster.slurm is None or not cluster.slurm.gpus_per_node:
        return 1
    return max(1, gpus_per_run(cluster) // cluster.slurm.gpus_per_node)


def parallel_runs(cluster: Cluster) -> int:
    """How many runs train at a time, on this machine or of an array, at least 1."""
    if cluster.max_parallel != "auto":
        return cluster.max_parallel
    if cluster.slurm is not None:
        return _AS_MANY_AS_SLURM_STARTS
    limit = num_cores() // (cluster.threads_per_run * ranks_per_run(cluster))
    if gpus := gpus_per_run(cluster):
        limit = min(limit, len(gpu_devices() or ()) // gpus)
    return max(1, limit)
