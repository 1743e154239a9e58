"""Folders that the nodes of a cluster cannot see: refused where that is certain, a warning where it is likely."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.errors import LaunchError
from hpcstab.launch import visibility
from hpcstab.launch.clusters import Cluster, load_cluster
from hpcstab.launch.visibility import file_system, refuse_hidden_folders

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /home rw - nfs4 server:/home rw
24 22 0:21 / /dev/shm rw - tmpfs tmpfs rw
25 22 0:22 / /var/lib/docker rw - overlay overlay rw
26 22 0:23 / /mnt/my\040disk rw - lustre x@tcp:/l rw
27 23 0:24 / /home/a/memory rw - ext4 /dev/x rw
28 23 0:25 / /home/a/memory rw - ramfs none rw
"""
Nodes = Callable[[str], None]


@pytest.fixture
def delta() -> Cluster:
    return load_cluster("delta")


@pytest.fixture(autouse=True)
def _installed_on_a_shared_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    monkeypatch.setattr(visibility, "_MOUNTS", mounts)
    monkeypatch.setattr(sys, "prefix", "/home/a/.venv")
    monkeypatch.setattr("hpcstab.__file__", "/home/a/hpcstab/__init__.py")


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def are(addresses: str) -> None:
        (folder / "sinfo").write_text(f"#!/bin/sh\necho '{addresses}'\n")
        (folder / "sinfo").chmod(0o755)

    return are


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a/runs", "nfs4"),
        ("/homes/a", "ext4"),
        ("/dev/shm/new/runs", "tmpfs"),
        ("/mnt/my disk/runs", "lustre"),
        ("/home/a/memory", "ramfs"),
    ],
)
def test_file_systems(path: str, kind: str) -> None:
    assert file_system(Path(path)) == kind


def test_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "_MOUNTS", Path("/nowhere"))
    assert file_system(Path("/dev/shm")) is None


def test_memory_of_this_machine_is_refused(delta: Cluster, nodes: Nodes) -> None:
    nodes("gpua001 10.0.0.1")
    with pytest.raises(LaunchError) as caught:
        refuse_hidden_folders(delta, Path("/dev/shm/runs"))
    assert caught.value.exit_code == 2
    assert str(caught.value) == (
        "run root '/dev/shm/runs' is in this machine's memory (tmpfs), which no node of 'delta' sees; "
        "choose another --root, on a shared file system"
    )


def test_an_installation_in_memory_is_refused(delta: Cluster, nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes("gpua001 10.0.0.1")
    monkeypatch.setattr(sys, "prefix", "/dev/shm/.venv")
    with pytest.raises(LaunchError, match=r"virtual environment '/dev/shm/.venv' .* install hpcstab elsewhere"):
        refuse_hidden_folders(delta, Path("/tmp/runs"))


@pytest.mark.parametrize(
    ("root", "kind"),
    [("/tmp/runs", "temporary files"), ("/var/tmp/x", "temporary files"), ("/var/lib/docker", "overlay")],
)
def test_what_is_only_likely_is_a_warning(delta: Cluster, nodes: Nodes, root: str, kind: str) -> None:
    nodes("gpua001 10.0.0.1")
    warning = refuse_hidden_folders(delta, Path(root))
    assert warning is not None
    assert f"run root '{root}' is probably on this machine only ({kind})" in warning
    assert "\n" not in warning


def test_a_node_on_this_machine_sees_what_it_sees(delta: Cluster, nodes: Nodes) -> None:
    nodes(f"gpua001 10.0.0.1\n{socket.gethostname()} 10.0.0.2")
    assert refuse_hidden_folders(delta, Path("/dev/shm/runs")) is None


@pytest.mark.parametrize("root", ["/home/a/runs", "/scratch/runs"])
def test_nothing_is_asked_where_nothing_tells_against_it(
    delta: Cluster, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no sinfo could answer
    assert refuse_hidden_folders(delta, Path(root)) is None


def test_local_runs_may_be_anywhere() -> None:
    assert refuse_hidden_folders(load_cluster("local"), Path("/dev/shm/runs")) is None
