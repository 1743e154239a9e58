"""The exact next command for a cause: to be copied as it stands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpcstab.explain.causes import Cause, CauseName
from hpcstab.explain.facts import Facts
from hpcstab.explain.remedies import Remedy, has_cured, problem_of, remedies_for

DEFAULT_ROOT = Path("runs")


@dataclass(frozen=True)
class Command:
    """``line`` is what to type; ``why`` what it does, in a few words."""

    line: str
    why: str


@dataclass(frozen=True)
class _Case:
    """A run and its first cause, with the pieces that commands are made of."""

    facts: Facts
    cause: Cause

    @property
    def run(self) -> str:
        """How a command names the run from here."""
        root = self.facts.run.path.parents[2]
        is_default = root.resolve() == DEFAULT_ROOT.resolve()
        return self.facts.run.path.name + ("" if is_default else f" --root {shlex.quote(str(root))}")

    @property
    def target(self) -> str:
        identity = self.facts.identity
        return f"{identity.get('model')}@{identity.get('variant')}"

    @property
    def size(self) -> str:
        identity = self.facts.identity
        settings = (
            f" --set {shlex.quote(f'{key}={_yaml(value)}')}" for key, value in identity.get("overrides", {}).items()
        )
        return f" --scale {identity.get('scale')} --seed {identity.get('seed')}{''.join(settings)}"

    @property
    def checkpoint(self) -> str:
        """The folder of the newest checkpoint."""
        names = [each.name for each in self.facts.checkpoints]
        return shlex.quote(str(self.facts.run.checkpoints / names[-1])) if names else ""

    def rerun(self, options: str, why: str, source: str = "healthy") -> Command:
        return Command(f"hpcstab rerun {self.run} --from {source}{options}", why)

    def again(self, remedy: Remedy) -> Command:
        """From step 0, where the network becomes another one or nothing healthy is there."""
        return Command(f"hpcstab train {self.target}+{remedy.name}{self.size}", f"{remedy.kind}: {remedy.why}")

    def go_on(self, why: str) -> Command:
        """The same run, from where it was saved last; on Slurm as a new job."""
        if self.facts.seen.ledger is not None and self.facts.seen.ledger.slurm is not None:
            return self.rerun("", why, "last") if self.facts.last_healthy else self.from_start(why)
        return Command(f"hpcstab train --resume {self.run}", why)

    def from_start(self, why: str) -> Command:
        verb = "submit" if self.facts.seen.ledger is not None else "train"
        if verb == "train":
            return Command(f"hpcstab train {self.target}{self.size}", why)
        identity = self.facts.identity
        options = f"--variants {identity.get('variant')} --seeds {identity.get('seed')} --scale {identity.get('scale')}"
        return Command(f"hpcstab submit {identity.get('model')} {options}", why)


def commands_for(facts: Facts, cause: Cause) -> tuple[Command, ...]:
    """What to type next; the first is what we would type."""
    case = _Case(facts, cause)
    found = list(_NEXT[cause.name](case))
    if facts.state.state == "running" and cause.about.bad_news:
        found.insert(0, Command(f"hpcstab cancel {case.run}", "it still runs, and costs"))
    return tuple(found)


def _numbers(case: _Case) -> list[Command]:
    """A cure that makes another network begins anew; what bounds the damage goes on from a healthy checkpoint."""
    facts, found = case.facts, []
    cures = remedies_for(facts, problem_of(facts.replay))
    if cures and not cures[0].keeps_network:
        found.append(case.again(cures[0]))
    keeping = [remedy for remedy in (*cures, *remedies_for(facts, "bounded")) if remedy.keeps_network]
    if keeping and facts.last_healthy is not None:
        at = f"from step {facts.last_healthy.step}; {keeping[0].kind}: {keeping[0].why}"
        found.append(case.rerun(f" --with {keeping[0].name}", at))
    elif keeping and not found:
        found.append(case.again(keeping[0]))
    if not found and facts.last_healthy is not None:
        found.append(case.rerun(" --set stability.gate=closed --set stability.guards=default", "with gate and guards"))
    if facts.replay is None and facts.no_replay.startswith("not replayed"):
        found.append(Command(f"hpcstab replay {case.run}", "who made the first value that is not finite"))
    return found or [Command(f"hpcstab report {facts.identity.get('model')}", "beside the other runs of its model")]


def _data(case: _Case) -> list[Command]:
    check = f"hpcstab data check {case.target} --scale {case.facts.identity.get('scale')}"
    return [Command(check, "one pass over all data"), *_bounded(case, "the gate leaves such a batch out")]


def _bounded(case: _Case, why: str, source: str = "healthy") -> list[Command]:
    is_bounded = (case.facts.config.get("stability") or {}).get("gate") == "closed"
    if is_bounded or (case.facts.last_healthy is None and source == "healthy"):
        return []
    remedies = remedies_for(case.facts, "bounded")
    options = f" --with {remedies[0].name}" if remedies else " --set stability.gate=closed"
    return [case.rerun(options, why, source)]


def _buffers(case: _Case) -> list[Command]:
    if not case.checkpoint:
        return _numbers(case)
    doctor = Command(f"hpcstab doctor {case.checkpoint} --fix", "estimates the statistics anew, in a copy")
    return [doctor, *_bounded(case, "goes on from the repaired weights, with the gate over the statistics", "last")]


def _memory(case: _Case) -> list[Command]:
    said = " ".join(line.text for line in case.cause.evidence) + case.cause.reason
    if "shared memory" in said or "Bus error" in said:
        return [case.rerun(" --set data.num_workers=0", "no batch passes through /dev/shm")]
    if "CUDA" in said or "HIP" in said or "GPU" in said:
        parts = int((case.facts.config.get("trainer") or {}).get("micro_batches") or 1)
        option = f" --set trainer.micro_batches={2 * parts}"
        return (
            [case.rerun(option, "half the batch at a time, the same gradients")]
            if case.facts.last_healthy
            else [
                Command(
                    f"hpcstab train {case.target}{case.size}{option}", "half the batch at a time, the same gradients"
                )
            ]
        )
    return [case.go_on("after mem_gib of the cluster's YAML (jobs/clusters/) was raised")]


def _disk(case: _Case) -> list[Command]:
    root = case.facts.run.path.parents[2]
    shown = "" if root.resolve() == DEFAULT_ROOT.resolve() else f" --root {shlex.quote(str(root))}"
    return [
        Command(f"hpcstab runs{shown}", "what takes the space; --prune PART removes of it what is named"),
        case.go_on("once there is space"),
    ]


def _look_and_go_on(why: str) -> Callable[[_Case], list[Command]]:
    def commands(case: _Case) -> list[Command]:
        return [Command(f"hpcstab logs {case.run}", "what it printed"), case.go_on(why)]

    return commands


def _go_on(why: str) -> Callable[[_Case], list[Command]]:
    return lambda case: [case.go_on(why)]


def _start_again(case: _Case) -> list[Command]:
    return [
        Command(f"hpcstab logs {case.run}", "what its shell and Python printed"),
        case.from_start("once that is mended"),
    ]


def _learning(case: _Case) -> list[Command]:
    facts = case.facts
    is_cured = facts.identity.get("variant") == "cured"
    cured = Command(
        f"hpcstab train {facts.identity.get('model')}@cured{case.size}", "the variant that was found to learn"
    )
    return [*([cured] if not is_cured and has_cured(facts) else []), *_report(case)]


def _report(case: _Case) -> list[Command]:
    return [Command(f"hpcstab report {case.facts.identity.get('model')}", "it beside the other runs of its model")]


def _status(case: _Case) -> list[Command]:
    return [Command("hpcstab status --watch 10", "wait")]


def _hanging(case: _Case) -> list[Command]:
    process = (case.facts.seen.attempt or {}).get("process") or {}
    where = f"py-spy dump --pid {process['pid']}" if "pid" in process else "py-spy dump --pid PID"
    return [
        Command(where, f"on {process.get('host', 'its node')}: where it waits"),
        case.go_on("after it was cancelled"),
    ]


_NEXT: dict[CauseName, Callable[[_Case], list[Command]]] = {
    "batchnorm_poisoned": _buffers,
    "bad_data": _data,
    "precision_overflow": _numbers,
    "nonfinite_operation": _numbers,
    "not_reproducible": lambda case: [case.rerun("", "the same again, on another node")],
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


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
