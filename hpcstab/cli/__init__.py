"""The command: one verb a file; each imports what it needs when it runs."""

from hpcstab.cli.app import main

__all__ = ["main"]
