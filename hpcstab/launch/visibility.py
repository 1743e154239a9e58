"""Whether the nodes of a cluster can see the folders that a job needs, as far as that is known before it is queued.

A job whose folders its node does not see ends at once and cannot say why. Only a file system in memory is this
machine's alone for certain: a local disk may well be exported to the nodes, so it is worth a warning at most.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from pathlib import Path

import hpcstab
from hpcstab.errors import EXIT_WRONG_REQUEST, LaunchError
from hpcstab.launch import scheduler
from hpcstab.launch.clusters import Cluster

_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = ("tmpfs", "ramfs")
_OF_A_CONTAINER = ("overlay",)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def refuse_hidden_folders(cluster: Cluster, root: Path) -> str | None:
    """A warning where the nodes will probably not see what the jobs need; None where nothing tells against it.

    Raises:
        LaunchError: they certainly will not.
    """
    if cluster.slurm is None:
        return None
    doubtful = [(what, path, kind) for what, path in _needed(root).items() if (kind := _local_kind(path))]
    if not doubtful or _has_node_here(cluster.slurm.partition):
        return None
    what, path, kind = min(doubtful, key=lambda entry: entry[2] not in _IN_MEMORY)
    remedy = (
        f"{'choose another --root' if path == root.resolve() else 'install hpcstab elsewhere'}, on a shared file system"
    )
    if kind in _IN_MEMORY:
        raise LaunchError(
            f"{what} '{path}' is in this machine's memory ({kind}), which no node of '{cluster.name}' sees; {remedy}",
            exit_code=EXIT_WRONG_REQUEST,
        )
    return f"{what} '{path}' is probably on this machine only ({kind}); if the nodes do not see it: {remedy}"


def _needed(root: Path) -> dict[str, Path]:
    return {
        "run root": root.resolve(),
        "the virtual environment": Path(sys.prefix).resolve(),
        "the hpcstab that runs": Path(hpcstab.__file__).resolve().parent,
    }


def _local_kind(path: Path) -> str | None:
    """In what way a folder may be this machine's alone; None where it does not look like that."""
    kind = file_system(path)
    if kind in (*_IN_MEMORY, *_OF_A_CONTAINER):
        return kind
    temporary = {Path(folder).resolve() for folder in ("/tmp", "/var/tmp", tempfile.gettempdir())}
    return "temporary files" if temporary & {path, *path.parents} else None


def file_system(path: Path) -> str | None:
    """Type of the file system that holds ``path`` or would hold it; None where the kernel does not tell."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    kinds = {}
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), mount.split()[4])
        kinds[Path(point)] = rest.split()[0]  # the last mount on a folder hides those before it
    return next((kinds[folder] for folder in (path, *path.parents) if folder in kinds), None)


def _has_node_here(partition: str) -> bool:
    """Whether a node of the partition is this machine: what is visible here is then visible to it."""
    host = socket.gethostname()
    own = {host, host.partition(".")[0], "localhost", "127.0.0.1", "::1"}
    return bool(own & set(scheduler.node_addresses(partition)))
