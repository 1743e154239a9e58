"""The one file format of checkpoints, and the checkpoints of a run."""

from hpcstab.checkpoint.format import read_checkpoint, read_manifest, write_checkpoint
from hpcstab.checkpoint.store import CheckpointStore, Restored

__all__ = ["CheckpointStore", "Restored", "read_checkpoint", "read_manifest", "write_checkpoint"]
