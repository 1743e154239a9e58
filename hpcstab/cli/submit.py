"""``hpcstab submit MODEL``: train variants x seeds as jobs; here, wait for them and report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcstab.cli.launching import ClusterName, DryRun, Gpus, Wait, launch
from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Configs, Root, Scale, Settings
from hpcstab.errors import ConfigError

if TYPE_CHECKING:
    from hpcstab.campaign import PlannedRun
    from hpcstab.launch.clusters import Cluster

_VARIANTS = "before,after,cured"


def submit(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="e.g. swae3d", show_default=False)] = None,
    variants: Annotated[
        str | None, typer.Option("--variants", help=f"Default: {_VARIANTS}.", show_default=False)
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="e.g. 0-2,7. Default: the cluster's.", show_default=False)
    ] = None,
    cluster_name: ClusterName = None,
    gpus: Gpus = None,
    scale: Scale = None,
    settings: Settings = None,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="A file of jobs/campaigns, instead of MODEL.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    wait: Wait = None,
    root: Root = DEFAULT_ROOT,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Train variants x seeds of a model as jobs, wait for them, and report which change made it stable.

    The jobs survive this terminal. Ctrl-C while waiting cancels them; with --detach nothing waits.
    Exit 1 if a run failed, was lost or was stopped; a diverged run is a result (exit 0). Exit 3 if none was started.
    --dry-run needs no Slurm: it says where there is none that answers.
    """

    def make_plan(cluster: Cluster) -> tuple[str, list[PlannedRun]]:
        return _plan(model, campaign, variants, seeds, scale, settings, cluster, configs)

    gpus = gpus if gpus is not None else _gpus_of(campaign, configs)
    launch(make_plan, cluster_name, root, configs, gpus=gpus, dry_run=dry_run, wait=wait, as_json=as_json)


def _gpus_of(campaign: str | None, configs: Path | None) -> int | None:
    from hpcstab.campaign import load_campaign

    return load_campaign(campaign, configs).gpus if campaign is not None else None


def _plan(
    model: str | None,
    campaign: str | None,
    variants: str | None,
    seeds: str | None,
    scale: str | None,
    settings: list[str] | None,
    cluster: Cluster,
    configs: Path | None,
) -> tuple[str, list[PlannedRun]]:
    """Name of the campaign and its runs."""
    from hpcstab.campaign import load_campaign, overrides_of, parse_names, parse_overrides, parse_seeds, plan

    if (model is None) == (campaign is None):
        raise ConfigError("submit wants a MODEL or --campaign NAME, one of the two; `hpcstab list` shows the models")
    if model is not None:
        return model, plan(
            [model],
            parse_names(variants if variants is not None else _VARIANTS, "variants"),
            parse_seeds(seeds if seeds is not None else cluster.default_seeds),
            scale or cluster.default_scale,
            parse_overrides(settings or []),
            configs,
        )
    if variants is not None or seeds is not None or settings:
        raise ConfigError("--campaign states variants, seeds and settings itself; change its file, or give a MODEL")
    assert campaign is not None
    file = load_campaign(campaign, configs)
    scale = scale or file.scale or cluster.default_scale
    runs = plan(list(file.models), list(file.variants), parse_seeds(file.seeds), scale, overrides_of(file), configs)
    return campaign, runs
