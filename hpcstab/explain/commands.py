"""The exact next command for a cause: to be copied as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from hpcstab.explain.case import Case, Command
from hpcstab.explain.causes import Cause, CauseName
from hpcstab.explain.facts import Facts
from hpcstab.explain.remedies import Remedy, has_cured, problem_of, remedies_for


def commands_for(facts: Facts, cause: Cause) -> tuple[Command, ...]:
    """What to type next; the first is what we would type."""
    case = Case(facts, cause)
    found = list(_NEXT[cause.name](case))
    if facts.state.state == "running" and cause.about.bad_news:
        found.insert(0, Command(f"hpcstab cancel {case.run}", "it still runs, and costs"))
    return tuple(found)


def _numbers(case: Case) -> list[Command]:
    """A cure that makes another network begins anew; what keeps it goes on from a healthy checkpoint."""
    facts, found = case.facts, []
    cures = remedies_for(facts, problem_of(facts.replay))
    keeping = [remedy for remedy in (*cures, *remedies_for(facts, "bounded")) if remedy.keeps_network]
    if cures and not cures[0].keeps_network:
        found.append(_anew(case, cures[0]))
    if keeping and facts.last_healthy is not None:
        why = f"from step {facts.last_healthy.step}; {keeping[0].kind}: {keeping[0].why}"
        found.append(case.rerun(f" --with {keeping[0].name}", why))
    elif keeping and not found:
        found.append(_anew(case, keeping[0]))
    if not found and case.gate != "closed":
        found.append(
            case.changed(" --set stability.gate=closed --set stability.guards=default", "with gate and guards")
        )
    if facts.replay is None and facts.no_replay.startswith("not replayed"):
        found.append(Command(f"hpcstab replay {case.run}", "who made the first value that is not finite"))
    return found or _report(case)


def _anew(case: Case, remedy: Remedy) -> Command:
    return case.start(f"{case.variant}+{remedy.name}", f"{remedy.kind}: {remedy.why}")


def _data(case: Case) -> list[Command]:
    check = f"hpcstab data check {case.model}@{case.variant} --scale {case.facts.identity.get('scale')}"
    spared = _bounded(case, "the gate leaves such a batch out") if case.facts.last_healthy else []
    return [Command(check, "one pass over all data"), *spared]


def _bounded(case: Case, why: str, source: str = "healthy") -> list[Command]:
    """The same with a closed gate, unless it had one."""
    if case.gate == "closed":
        return []
    remedies = remedies_for(case.facts, "bounded")
    return [case.rerun(f" --with {remedies[0].name}" if remedies else " --set stability.gate=closed", why, source)]


def _buffers(case: Case) -> list[Command]:
    """The newest weights with their statistics repaired, which may have been done already."""
    newest = case.facts.checkpoints[-1] if case.facts.checkpoints else None
    if newest is None:
        return _numbers(case)
    why = "goes on from the repaired weights, with the gate over the statistics"
    if newest.is_healthy:
        return _bounded(case, why) or [case.rerun("", why)]
    folder = shlex.quote(str(case.facts.run.checkpoints / newest.name))
    doctor = Command(f"hpcstab doctor {folder} --fix", "estimates the statistics anew, in a copy")
    return [doctor, *_bounded(case, why, "last")]


def _memory(case: Case) -> list[Command]:
    said = " ".join([case.cause.reason, *(line.text for line in case.cause.evidence)])
    if "shared memory" in said or "Bus error" in said:
        return [case.changed(" --set data.num_workers=0", "no batch passes through /dev/shm")]
    if "CUDA" in said or "HIP" in said or "GPU" in said:
        parts = int((case.facts.config.get("trainer") or {}).get("micro_batches") or 1)
        why = "the batch in smaller parts, the same gradients"
        return [case.changed(f" --set trainer.micro_batches={2 * parts}", why)]
    return [case.go_on("after mem_gib of the cluster's YAML (jobs/clusters/) was raised")]


def _disk(case: Case) -> list[Command]:
    shown = Command(f"hpcstab runs{case.root}", "what takes the space; --prune PART removes of it what is named")
    return [shown, case.go_on("once there is space")]


def _look_and_go_on(why: str) -> Callable[[Case], list[Command]]:
    return lambda case: [Command(f"hpcstab logs {case.run}", "what it printed"), case.go_on(why)]


def _go_on(why: str) -> Callable[[Case], list[Command]]:
    return lambda case: [case.go_on(why)]


def _start_again(case: Case) -> list[Command]:
    looked = Command(f"hpcstab logs {case.run}", "what its shell and Python printed")
    return [looked, case.start(case.variant, "once that is mended")]


def _learning(case: Case) -> list[Command]:
    if case.variant == "cured" or not has_cured(case.facts):
        return _report(case)
    return [case.start("cured", "the variant that was found to learn"), *_report(case)]


def _report(case: Case) -> list[Command]:
    return [Command(f"hpcstab report {case.model}{case.root}", "it beside the other runs of its model")]


def _status(case: Case) -> list[Command]:
    return [Command(f"hpcstab status --watch 10{case.root}", "wait")]


def _hanging(case: Case) -> list[Command]:
    process = (case.facts.seen.attempt or {}).get("process") or {}
    dump = Command(
        f"py-spy dump --pid {process.get('pid', 'PID')}", f"on {process.get('host', 'its node')}: where it waits"
    )
    return [dump, case.go_on("after it was cancelled")]


_NEXT: dict[CauseName, Callable[[Case], list[Command]]] = {
    "batchnorm_poisoned": _buffers,
    "bad_data": _data,
    "precision_overflow": _numbers,
    "nonfinite_operation": _numbers,
    "not_reproducible": lambda case: [case.changed("", "the same again, on another node")],
    "divergence_finite": _numbers,
    "evaluation_empty": _buffers,
    "out_of_memory": _memory,
    "disk_full_or_quota": _disk,
    "missing_module_or_environment": _look_and_go_on("once the node has it"),
    "data_error": _data,
    "crash_in_code": _look_and_go_on("once the line is mended"),
    "refused": _look_and_go_on("once that is mended"),
    "node_failure": _go_on("from its last checkpoint, on another node"),
    "preempted": _go_on("from its last checkpoint"),
    "time_limit": _go_on("from its last checkpoint"),
    "cancelled_by_user": _go_on("if it is wanted after all"),
    "stopped_by_signal": _go_on("from its last checkpoint"),
    "hanging": _hanging,
    "never_started": _start_again,
    "lost": _go_on("from its last checkpoint"),
    "not_learning": _learning,
    "masked": _report,
    "waiting": _status,
    "still_running_healthy": _status,
    "completed_healthy": _report,
    "unknown": _look_and_go_on("if it has ended"),
}
