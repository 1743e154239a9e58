"""``hpcstab submit MODEL``: train variants x seeds as jobs; here, wait for them and report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcstab.cli.data import refuse_missing_data
from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Configs, Root, Scale, Settings
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import EXIT_BAD_NEWS, EXIT_NO_ANSWER, ConfigError, LaunchError

if TYPE_CHECKING:
    from hpcstab.campaign import PlannedRun
    from hpcstab.launch.clusters import Cluster
    from hpcstab.launch.queue import RunState
    from hpcstab.state.ledger import Ledger

_VARIANTS = "before,after,cured"
_CANCEL_PATIENCE_S = 20.0
_INTERRUPTED = 130
REPORTS = Path("reports/local")


def submit(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="e.g. swae3d", show_default=False)] = None,
    variants: Annotated[
        str | None, typer.Option("--variants", help=f"Default: {_VARIANTS}.", show_default=False)
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="e.g. 0-2,7. Default: the cluster's.", show_default=False)
    ] = None,
    cluster_name: Annotated[
        str | None,
        typer.Option(
            "--cluster", help="Default: HPCSTAB_CLUSTER, else the Slurm here, else local.", show_default=False
        ),
    ] = None,
    scale: Scale = None,
    settings: Settings = None,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="A file of jobs/campaigns, instead of MODEL.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run; create nothing.")] = False,
    wait: Annotated[
        bool | None,
        typer.Option(
            "--wait/--no-wait",
            " /--detach",
            help="Wait with live progress, then report; or return at once. Default: wait where runs are local.",
            show_default=False,
        ),
    ] = None,
    root: Root = DEFAULT_ROOT,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Train variants x seeds of a model as jobs, wait for them, and report which change made it stable.

    The jobs survive this terminal. Ctrl-C while waiting cancels them; with --detach nothing waits.
    Exit 1 if a run failed, was lost or was stopped; a diverged run is a result (exit 0). Exit 3 if none was started.
    --dry-run needs no Slurm: it says where there is none that answers.
    """
    from hpcstab.launch.clusters import choose_cluster, refuse_unusable
    from hpcstab.launch.submit import submit as submit_runs

    cluster = choose_cluster(cluster_name, configs)
    why_not_here = None
    if dry_run:
        why_not_here = _why_not_here(cluster)
    else:
        refuse_unusable(cluster)
    name, planned = _plan(model, campaign, variants, seeds, scale, settings, cluster, configs)
    if not dry_run:
        refuse_missing_data(run.resolved for run in planned)
    if why_not_here is None:
        _warn_of_hidden_folders(cluster, root)
    if dry_run:
        _show_plan(name, planned, cluster, root, why_not_here, as_json)
        return
    ledger = submit_runs(planned, name, cluster, root, configs, tuple(sys.argv[1:]))
    if not (cluster.executor == "local" if wait is None else wait):
        _print_submitted(ledger, root, as_json)
        return
    states = _wait_or_cancel(ledger, root, as_json)
    if all(state.attempt is None and state.state in ("failed", "lost") for state in states):
        raise LaunchError(f"no run was started: {states[0].detail}", exit_code=EXIT_NO_ANSWER)
    _report(ledger, states, root, as_json)
    if any(not state.is_result for state in states):
        raise typer.Exit(EXIT_BAD_NEWS)


def _why_not_here(cluster: Cluster) -> str | None:
    """Why a plan for the cluster can be shown, and not submitted; a wrong request is none on any machine."""
    from hpcstab.launch.clusters import refusal

    error = refusal(cluster)
    if error is not None and error.exit_code != EXIT_NO_ANSWER:
        raise error
    return str(error) if error else None


def _warn_of_hidden_folders(cluster: Cluster, root: Path) -> None:
    from hpcstab.launch.visibility import refuse_hidden_folders

    warning = refuse_hidden_folders(cluster, root)
    if warning:
        print(f"hpcstab: {warning}", file=sys.stderr)


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


def _show_plan(
    name: str, planned: list[PlannedRun], cluster: Cluster, root: Path, why_not_here: str | None, as_json: bool
) -> None:
    from hpcstab.cli.status import num_runs
    from hpcstab.launch.clusters import gpus_per_run, parallel_runs
    from hpcstab.launch.submit import shown_command, shown_script

    runs = [
        (run.resolved.model, run.resolved.label, run.seed, run.resolved.scale, run.resolved.signature[:8])
        for run in planned
    ]
    columns = ("model", "variant", "seed", "scale", "signature")
    facts: dict[str, Any] = {
        "cluster": cluster.name,
        "parallel_runs": parallel_runs(cluster),
        "threads_per_run": cluster.threads_per_run,
        "gpus_per_run": gpus_per_run(cluster),
        "time_limit_min": cluster.time_limit_min,
        "usable": why_not_here is None,
        "why": why_not_here,
    }
    if cluster.executor == "slurm":
        facts["script"] = shown = shown_script(root, name, cluster, len(planned))
    else:
        facts["command"] = shown = shown_command(root, name, cluster)
    if why_not_here is not None:
        print(f"hpcstab: this machine cannot submit to '{cluster.name}': {why_not_here}", file=sys.stderr)
    if as_json:
        print_json({**facts, "runs": [dict(zip(columns, run, strict=True)) for run in runs]})
        return
    print_table(columns, runs)
    share = f"{cluster.threads_per_run} threads and {facts['gpus_per_run']} GPUs a run"
    limit = f"at most {cluster.time_limit_min} min each"
    print(f"{num_runs(len(runs))} on cluster '{cluster.name}': {facts['parallel_runs']} at a time, {share}, {limit}")
    print(shown)


def _print_submitted(ledger: Ledger, root: Path, as_json: bool) -> None:
    if as_json:
        on_slurm = {"jobs": [job.job_id for job in ledger.jobs]} if ledger.executor == "slurm" else {}
        print_json({"campaign": ledger.campaign, "runs": [job.run_id for job in ledger.jobs], **on_slurm})
        return
    for job in ledger.jobs:
        print(job.run_id if ledger.executor == "local" else f"{job.run_id}\tjob {job.job_id}")
    for verb in ("status", "cancel"):
        print(f"hpcstab {verb} {ledger.campaign}{_root_option(root)}")


def _wait_or_cancel(ledger: Ledger, root: Path, as_json: bool) -> list[RunState]:
    """The states of all runs once they have ended; Ctrl-C cancels them first."""
    from hpcstab.cli.status import follow_campaign, num_runs, summary
    from hpcstab.launch.cancel import cancel_campaign
    from hpcstab.state.ledger import ledger_path

    stream = sys.stderr if as_json else sys.stdout
    print(f"campaign {ledger.campaign}: {num_runs(len(ledger.jobs))}; Ctrl-C cancels them", file=stream, flush=True)
    try:
        return follow_campaign(root, ledger.campaign, stream)
    except KeyboardInterrupt:
        print(f"\ninterrupted: cancelling the runs of {ledger.campaign}", file=sys.stderr, flush=True)
        cancel_campaign(ledger_path(root, ledger.campaign))
        states = follow_campaign(root, ledger.campaign, stream, patience_s=_CANCEL_PATIENCE_S)
        still = f"; `hpcstab status {ledger.campaign}{_root_option(root)}`" if any(s.is_open for s in states) else ""
        print(f"{summary(states)}{still}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None


def _report(ledger: Ledger, states: list[RunState], root: Path, as_json: bool) -> None:
    from hpcstab.cli.report import as_mapping, print_report
    from hpcstab.cli.status import one_line
    from hpcstab.report import write_report
    from hpcstab.rundir import RunDir

    for state in states:
        if not state.is_result:
            print(f"{one_line(state)}; `hpcstab logs {state.run_id}{_root_option(root)}`", file=sys.stderr)
    report = write_report([RunDir(root / state.run_id) for state in states], REPORTS / ledger.campaign)
    if as_json:
        runs = [state.as_json() for state in states]
        print_json({"campaign": ledger.campaign, "runs": runs, "report": as_mapping(report)})
    else:
        print_report(report)


def _root_option(root: Path) -> str:
    """What a command needs to look at the same runs."""
    return "" if root == DEFAULT_ROOT else f" --root {shlex.quote(str(root))}"
