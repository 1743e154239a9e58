"""``hpcstab clusters``: where runs can be trained, and ``clusters check NAME``."""

from __future__ import annotations

from typing import Annotated

import typer

from hpcstab.cli.options import AsJson, Configs
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import EXIT_BAD_NEWS

app = typer.Typer(
    help="Where runs can be trained; `check NAME` shows the settings of one.", invoke_without_command=True
)


@app.callback()
def list_clusters(context: typer.Context, configs: Configs = None, as_json: AsJson = False) -> None:
    """The clusters with a YAML in jobs/clusters; `check NAME` shows one in full."""
    if context.invoked_subcommand is not None:
        return
    from hpcstab.launch.clusters import cluster_names, load_cluster, why_unusable

    clusters = [load_cluster(name, configs) for name in cluster_names(configs)]
    if as_json:
        print_json([cluster.model_dump(mode="json") for cluster in clusters])
        return
    print_table(
        ("cluster", "executor", "scale", "seeds", "parallel", "threads", "usable here", "about"),
        [
            (
                cluster.name,
                cluster.executor,
                cluster.default_scale,
                cluster.default_seeds,
                cluster.max_parallel,
                cluster.threads_per_run,
                "no" if why_unusable(cluster) else "yes",
                cluster.about,
            )
            for cluster in clusters
        ],
    )


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="e.g. local")],
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """The settings of a cluster, and whether it can be used from here (exit 1 where it cannot)."""
    from hpcstab.config import leaf_keys
    from hpcstab.launch.clusters import gpus_per_run, load_cluster, parallel_runs, ranks_per_run, why_unusable

    cluster = load_cluster(name, configs)
    reason = why_unusable(cluster)
    shares = {"gpus_per_run": gpus_per_run(cluster), "ranks_per_run": ranks_per_run(cluster)}
    here = None if reason else {"parallel_runs": parallel_runs(cluster), **shares}
    if as_json:
        print_json({**cluster.model_dump(mode="json"), "usable": reason is None, "why": reason, "here": here})
    else:
        print_table(
            ("setting", "value"), [(key, "null" if value is None else value) for key, value in leaf_keys(cluster)]
        )
        if here:
            share = f"{here['gpus_per_run']} GPUs and {here['ranks_per_run']} ranks a run"
            print(f"usable here: {here['parallel_runs']} runs at a time, {share}")
        else:
            print(f"not usable here: {reason}")
    if reason:
        raise typer.Exit(EXIT_BAD_NEWS)
