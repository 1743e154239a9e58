"""``python -m hpcstab``: the same command, for places where scripts are not on the PATH."""

from hpcstab.cli import main

main()
