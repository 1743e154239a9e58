"""Cluster YAMLs: complete, strict, and nothing in them that a batch script would take for more than a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcstab.errors import ConfigError, HpcstabError, LaunchError
from hpcstab.launch.clusters import (
    choose_cluster,
    cluster_names,
    load_cluster,
    parallel_runs,
    refuse_unusable,
    why_unusable,
)
from tests.conftest import REPOSITORY
from tests.launch.conftest import local


def configs_with(tmp_path: Path, name: str, based_on: str, changes: dict[str, Any]) -> Path:
    """A --configs folder with one cluster, a changed copy of a shipped one; ``a.b`` changes a key of a section."""
    values = yaml.safe_load((REPOSITORY / f"jobs/clusters/{based_on}.yaml").read_text())
    for key, value in changes.items():
        section = values["slurm"] if key.startswith("slurm.") else values
        section[key.removeprefix("slurm.")] = value
    folder = tmp_path / "jobs" / "clusters"
    folder.mkdir(parents=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def test_every_shipped_cluster_is_valid() -> None:
    assert {"local", "delta"} <= set(cluster_names())
    for name in cluster_names():
        assert load_cluster(name).name == name


def test_delta_is_shown_but_refused() -> None:
    delta = load_cluster("delta")
    assert delta.slurm is not None
    assert (delta.slurm.partition, delta.slurm.account) == ("gpuA100x4", "bcqs-delta-gpu")
    with pytest.raises(LaunchError, match=r"no (Slurm|sbatch) here") as caught:
        refuse_unusable(delta)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("based_on", "key", "value", "message"),
    [
        ("delta", "slurm.partition", "gpu\ntouch F\n#", "letters, digits"),
        ("delta", "slurm.partition", "gpu; rm -rf ~", "letters, digits"),
        ("delta", "slurm.account", "$(id)", "letters, digits"),
        ("delta", "slurm.constraint", "a`id`", "letters, digits"),
        ("delta", "slurm.gres", "--wrap=x", "letters, digits"),
        ("delta", "slurm.partition", "", "letters, digits"),
        ("delta", "slurm.nodes", 2, "unknown key"),
        ("delta", "slurm", None, "needs section 'slurm'"),
        ("local", "slurm", {}, "slurm.partition"),
        ("local", "about", "two\nlines", "control character"),
        ("local", "default_scale", "quick'", "letters, digits"),
        ("local", "default_seeds", "-1", "neither a number"),
        ("local", "default_seeds", "3-1", "empty"),
        ("local", "max_parallel", 0, "auto and whole numbers from 1"),
        ("local", "max_parallel", "many", "auto and whole numbers from 1"),
        ("local", "max_parallel", True, "auto and whole numbers from 1"),
        ("local", "gpus_per_run", -1, "auto and whole numbers from 0"),
        ("local", "threads_per_run", 0, "greater than or equal to 1"),
        ("local", "threads_per_run", "2", "valid integer"),
        ("local", "executor", "pbs", "'local' or 'slurm'"),
        ("local", "name", "other", "named by its file"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(
    tmp_path: Path, based_on: str, key: str, value: object, message: str
) -> None:
    configs = configs_with(tmp_path, "mine", based_on, {key: value})
    with pytest.raises(ConfigError, match=message) as caught:
        load_cluster("mine", configs)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lcoal", "../local", "a\nb", "local; ls", ""])
def test_an_unknown_cluster_names_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"There are: .*local") as caught:
        load_cluster(name)
    assert caught.value.exit_code == 2


def test_flag_then_environment_then_local(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_cluster(None).name == "local"
    monkeypatch.setenv("HPCSTAB_CLUSTER", "delta")
    assert choose_cluster(None).name == "delta"
    assert choose_cluster("local").name == "local"
    monkeypatch.setenv("HPCSTAB_CLUSTER", "nowhere")
    with pytest.raises(HpcstabError, match="HPCSTAB_CLUSTER: unknown cluster 'nowhere'"):
        choose_cluster(None)


def test_auto_is_one_run_for_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("hpcstab.launch.clusters.num_cores", lambda: 8)
    assert parallel_runs(local(threads_per_run=1)) == 8
    assert parallel_runs(local(threads_per_run=3)) == 2
    assert parallel_runs(local(threads_per_run=99)) == 1
    assert parallel_runs(local(max_parallel=5)) == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert parallel_runs(local(threads_per_run=1)) == 3, "one run a GPU"
    assert parallel_runs(local(threads_per_run=1, gpus_per_run=2)) == 1


def test_more_gpus_a_run_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert why_unusable(local(gpus_per_run=2)) is None
    assert "asks for 3 GPUs a run; here are 2" in str(why_unusable(local(gpus_per_run=3)))
