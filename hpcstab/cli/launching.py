"""What `submit` and `rerun` share: planned runs are shown, or started, waited for and reported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcstab.cli.data import refuse_missing_data
from hpcstab.cli.options import DEFAULT_ROOT
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import EXIT_BAD_NEWS, EXIT_NO_ANSWER, LaunchError

if TYPE_CHECKING:
    from hpcstab.campaign import PlannedRun
    from hpcstab.launch.clusters import Cluster
    from hpcstab.launch.queue import RunState
    from hpcstab.state.ledger import Ledger

ClusterName = Annotated[
    str | None,
    typer.Option("--cluster", help="Default: HPCSTAB_CLUSTER, else the Slurm here, else local.", show_default=False),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=0,
        help="GPUs that train each run together, a process each; more than a node has: whole nodes. Default: the"
        " campaign's, else the cluster's.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be run; create nothing.")]
Wait = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        " /--detach",
        help="Wait with live progress, then report; or return at once. Default: wait where runs are local.",
        show_default=False,
    ),
]
REPORTS = Path("reports/local")
_CANCEL_PATIENCE_S = 20.0
_INTERRUPTED = 130


def launch(
    make_plan: Callable[[Cluster], tuple[str, list[PlannedRun]]],
    cluster_name: str | None,
    root: Path,
    configs: Path | None,
    *,
    gpus: int | None,
    dry_run: bool,
    wait: bool | None,
    as_json: bool,
) -> None:
    """Start what ``make_plan`` says for the cluster, (name of the campaign, its runs), wait for it and report.

    Raises:
        ConfigError: the cluster cannot give a run so many ``gpus``.
        LaunchError: the cluster cannot be used from here, or no run was started.
        typer.Exit: 1 where a run failed, was lost or was stopped; 130 after Ctrl-C.
    """
    from hpcstab.launch.clusters import choose_cluster, ranks_per_run, refuse_unusable, with_gpus
    from hpcstab.launch.submit import refuse_unequal_shares
    from hpcstab.launch.submit import submit as submit_runs

    cluster = with_gpus(choose_cluster(cluster_name, configs), gpus)
    why_not_here = None
    if dry_run:
        why_not_here = _why_not_here(cluster)
    else:
        refuse_unusable(cluster)
    name, planned = make_plan(cluster)
    refuse_unequal_shares(planned, ranks_per_run(cluster))
    if why_not_here is None:
        _warn_of_hidden_folders(cluster, root)
    if dry_run:
        _show_plan(name, planned, cluster, root, why_not_here, as_json)
        return
    refuse_missing_data(run.resolved for run in planned)
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


def _show_plan(
    name: str, planned: list[PlannedRun], cluster: Cluster, root: Path, why_not_here: str | None, as_json: bool
) -> None:
    from hpcstab.cli.status import num_runs
    from hpcstab.launch.clusters import gpus_per_run, nodes_per_run, parallel_runs, ranks_per_run
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
        "ranks_per_run": ranks_per_run(cluster),
        "nodes_per_run": nodes_per_run(cluster),
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
    if facts["ranks_per_run"] > 1:
        nodes = "one node" if facts["nodes_per_run"] == 1 else f"{facts['nodes_per_run']} nodes"
        share = (
            f"{facts['ranks_per_run']} ranks a run on {nodes}, {cluster.threads_per_run} threads and"
            f" {'a GPU' if facts['gpus_per_run'] else 'no GPU'} each"
        )
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
