"""``hpcstab rerun RUN``: a new run that goes on from a checkpoint of another, with what is to be different."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hpcstab.cli.launching import ClusterName, DryRun, Gpus, Wait, launch
from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Configs, Root, Settings

if TYPE_CHECKING:
    from hpcstab.campaign import PlannedRun
    from hpcstab.launch.clusters import Cluster

_HEALTHY = "healthy"


def rerun(
    target: Annotated[str, typer.Argument(metavar="RUN", help="A path, a run id, or any unique part of one.")],
    wanted: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="last|best|healthy|STEP|FILE",
            help="A checkpoint of RUN; or a file of anybody's, for its weights.",
        ),
    ] = _HEALTHY,
    fixes: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="FIX", help="A fix of the model's YAML. May be repeated.", show_default=False),
    ] = None,
    settings: Settings = None,
    cluster_name: ClusterName = None,
    gpus: Gpus = None,
    dry_run: DryRun = False,
    wait: Wait = None,
    root: Root = DEFAULT_ROOT,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Go on from a checkpoint of a run, as a new run with that parent; as a job, like submit.

    healthy: the newest whose state is finite. last: the newest; a sick one goes through the doctor first. STEP: one of
    them. FILE: the weights of any PyTorch checkpoint, from step 0. Without --with and --set it is the continuation of
    RUN, bit for bit. Fixes that change the network are refused.
    """
    from hpcstab.config import parse_overrides
    from hpcstab.launch.queue import state_of
    from hpcstab.rundir import find_run

    parent = find_run(target, root)

    def make_plan(cluster: Cluster) -> tuple[str, list[PlannedRun]]:
        from hpcstab.rerun import plan_rerun

        rerun = plan_rerun(parent, wanted, tuple(fixes or ()), parse_overrides(settings or []), configs)
        state = state_of(parent)
        if state.is_open:
            later = f"what it does after its step {rerun.step} is not in the rerun"
            print(f"hpcstab: {parent.run_id} is {state.state}; {later}", file=sys.stderr)
        for line in rerun.told:
            print(line, file=sys.stderr if as_json else sys.stdout)
        return rerun.planned.resolved.model, [rerun.planned]

    launch(make_plan, cluster_name, root, configs, gpus=gpus, dry_run=dry_run, wait=wait, as_json=as_json)
