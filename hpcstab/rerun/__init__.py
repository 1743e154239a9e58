"""A run that goes on from a checkpoint of another run, or begins with somebody's weights."""

from hpcstab.rerun.plan import Rerun, plan_rerun

__all__ = ["Rerun", "plan_rerun"]
