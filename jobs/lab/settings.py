"""What a lab is: its folder, its switches, the names of its files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

NODES = ("n1", "n2")
GPUS_PER_NODE = 4
CPUS_PER_NODE = 8
MEMORY_PER_NODE_MIB = 16_000
PREEMPTING_PARTITION = "gpuA100x4"
ACCOUNT = "bcqs-delta-gpu"

_OF_SLURM = ("SLURM", "SBATCH_", "SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "SRUN_")
_LONGEST_FOLDER = 60  # a Unix socket's path holds 107 characters, and Slurm's own names come after the folder


class LabError(Exception):
    """It cannot be done here: one line, exit code 3."""

    exit_code = 3


class RequestError(LabError):
    """The request is wrong: one line, exit code 2."""

    exit_code = 2


@dataclass(frozen=True)
class Switches:
    """How a lab is started."""

    accounting: bool = True
    user_signal: bool = False

    def __str__(self) -> str:
        return f"accounting {_on_off(self.accounting)}, user signal {_on_off(self.user_signal)}"


@dataclass(frozen=True)
class Lab:
    """The files of one lab; it runs where its record is."""

    folder: Path

    @classmethod
    def from_environment(cls) -> Lab:
        """The lab of HPCSTAB_LAB, by default ``hpcstab-lab`` in the folder for temporary files."""
        chosen = os.environ.get("HPCSTAB_LAB")
        folder = (Path(chosen) if chosen else Path(tempfile.gettempdir()) / "hpcstab-lab").resolve()
        if len(str(folder)) > _LONGEST_FOLDER or not re.fullmatch(r"[A-Za-z0-9/._-]+", str(folder)):
            raise RequestError(
                f"HPCSTAB_LAB: got {str(folder)!r}; allowed are letters, digits and /._-, "
                f"at most {_LONGEST_FOLDER} characters (Unix sockets lie in it)"
            )
        return cls(folder)

    @property
    def record(self) -> Path:
        """Made first and removed last: the mark of a lab's folder, with its switches."""
        return self.folder / "lab.json"

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "conf" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def log(self, daemon: str) -> Path:
        """What the daemon itself writes; what it printed is beside it, in ``.out``."""
        return self.folder / "logs" / f"{daemon}.log"

    def process_record(self, daemon: str) -> Path:
        return self.folder / "pids" / f"{daemon}.json"

    def create(self, switches: Switches) -> None:
        """Make the folder; one that is not a lab's is never touched."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise RequestError(f"{self.folder} is there and is no lab; remove it, or set HPCSTAB_LAB to another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record.write_text(json.dumps(asdict(switches)))
        for name in ("conf", "dev", "logs", "munge", "pids", "spool", "state"):
            (self.folder / name).mkdir(mode=0o755)

    def environment(self) -> dict[str, str]:
        """For Slurm's programs: the caller's, without settings of Slurm that would change what they do or print."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_SLURM)}
        return kept | {"SLURM_CONF": str(self.slurm_conf), "LC_ALL": "C"}

    def switches(self) -> Switches | None:
        """How it was started; None where there is no lab."""
        try:
            return Switches(**json.loads(self.record.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # cut off while it was written
            return Switches()

    def require_up(self) -> Switches:
        """Its switches.

        Raises:
            LabError: there is no lab.
        """
        switches = self.switches()
        if switches is None:
            raise LabError(f"no lab in {self.folder}; start it with `lab.py up`")
        return switches


def _on_off(value: bool) -> str:
    return "on" if value else "off"
