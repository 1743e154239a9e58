"""What can go wrong on a cluster, made by Slurm itself: each waits until Slurm shows it."""

from __future__ import annotations

import time
from collections.abc import Callable

from client import Job, ask, call, free_cpus, node_states, read_job
from configuration import GRACE_S, KILL_WAIT_S
from processes import kill_jobs, running, stop, wait_until
from services import start_accounting_daemon, start_controller, start_node
from settings import ACCOUNT, CPUS_PER_NODE, NODES, PREEMPTING_PARTITION, Lab, LabError, RequestError

_SHOWN_S = 20.0
_ENDED_S = KILL_WAIT_S + 20.0
_SAME_SECOND_S = 2.0  # started in the second in which it ended, slurmd refuses a job and it is FAILED for good
_LIVE = ("RUNNING", "SUSPENDED", "COMPLETING")
_MOST_FILLERS = 2 * CPUS_PER_NODE
_FILLER = (
    f"--partition={PREEMPTING_PARTITION}",
    f"--account={ACCOUNT}",
    "--job-name=lab-filler",
    "--mem=1",
    "--time=1",
    "--output=/dev/null",
    "--no-requeue",
    "--wrap=sleep 1",
)
_UNUSABLE = ("down", "drain", "unknown", "fail")


def preempt(lab: Lab, job_id: str, *, wait: bool) -> str:
    """Submit short jobs of a higher partition that need the CPUs of this job, until Slurm takes them from it.

    Where several jobs hold equal CPUs, Slurm may choose another first (the youngest); then one more is submitted.
    ``wait``: until the job is out of its node, else only until its preemption has begun.
    """
    job = _require_state(lab, job_id, "RUNNING")
    if not job.partition.startswith("preempt"):
        raise RequestError(f"job {job_id} is in partition {job.partition}, which is never preempted")
    node, cpus = next(iter(job.cpus.items()))
    fillers: list[str] = []
    limit_s = _ENDED_S + (GRACE_S if job.partition == "preempt-grace" else 0)
    try:
        _submit_fillers(lab, job, fillers, node, cpus)
        if not wait:
            return f"job {job_id}: preemption has begun on {node}"
        ended = _wait_for_job(lab, job_id, lambda now: _is_out(now, job), limit_s, "leave its node")
    except BaseException:
        for filler in fillers:
            call(lab, "scancel", filler)
        raise
    wait_until(lambda: not _are_queued(lab, fillers), _ENDED_S)
    return f"job {job_id} was preempted on {node}; now {_describe(ended)}"


def requeue(lab: Lab, job_id: str) -> str:
    """As an operator does it: the job ends and is queued again."""
    job = _require_state(lab, job_id, "RUNNING", "SUSPENDED")
    ask(lab, "scontrol", "requeue", job_id)
    now = _wait_for_job(lab, job_id, lambda now: _is_out(now, job), _ENDED_S, "be queued again")
    return f"job {job_id} was requeued; now {_describe(now)}"


def release(lab: Lab, job_id: str) -> str:
    """After a requeue a job is held for about 120 s (reason BeginTime); let it start now."""
    read_job(lab, job_id)
    now = _wait_for_job(lab, job_id, lambda now: now.state not in _LIVE[1:], _ENDED_S, "be out of its node")
    if now.state != "PENDING":
        raise RequestError(f"job {job_id} is {now.state}; only a PENDING job is released")
    time.sleep(_SAME_SECOND_S)
    ask(lab, "scontrol", "update", f"jobid={job_id}", "StartTime=now")
    now = _wait_for_job(lab, job_id, lambda now: now.reason != "BeginTime", _SHOWN_S, "be released")
    return f"job {job_id} was released; now {_describe(now)}"


def suspend(lab: Lab, job_id: str) -> str:
    """Stop its processes; they keep their memory and its time limit stands still."""
    _require_state(lab, job_id, "RUNNING")
    ask(lab, "scontrol", "suspend", job_id)
    now = _wait_for_job(lab, job_id, lambda now: now.state == "SUSPENDED", _SHOWN_S, "be suspended")
    return f"job {job_id} is {_describe(now)}"


def resume(lab: Lab, job_id: str) -> str:
    """Let a suspended job go on."""
    _require_state(lab, job_id, "SUSPENDED")
    ask(lab, "scontrol", "resume", job_id)
    now = _wait_for_job(lab, job_id, lambda now: now.state == "RUNNING", _SHOWN_S, "run")
    return f"job {job_id} is {_describe(now)}"


def node_down(lab: Lab, node: str) -> str:
    """As if its power went: its daemon and its jobs' processes are killed, and the controller is told at once,
    instead of finding out after SlurmdTimeout."""
    _require_node(lab, node)
    stop(lab, [f"slurmd-{node}"], at_once=True)
    num_killed = kill_jobs(lab, (node,))
    ask(lab, "scontrol", "update", f"nodename={node}", "state=down", "reason=lab.py node-down")
    _wait_for_node(lab, node, lambda state: state.startswith("down"))
    return f"node {node} is down, {num_killed} processes of jobs killed; its jobs are queued again (NODE_FAIL)"


def node_up(lab: Lab, node: str) -> str:
    """Bring it back; nothing to do where it is well."""
    if not _require_node(lab, node).startswith(_UNUSABLE):
        return f"node {node} is {node_states(lab)[node]} already"
    if running(lab, f"slurmd-{node}") is None:
        start_node(lab, node)
    call(lab, "scontrol", "update", f"nodename={node}", "state=resume")  # refused where its start was enough
    _wait_for_node(lab, node, lambda state: not state.startswith(_UNUSABLE) and not state.endswith("*"))
    return f"node {node} is {node_states(lab)[node]}"


def restart_controller(lab: Lab) -> str:
    """Stop slurmctld and start it again with the jobs that it saved."""
    stopped_at = time.monotonic()
    controller_off(lab)
    answer = controller_on(lab)
    return f"slurmctld was away for {time.monotonic() - stopped_at:.1f} s; {answer}"


def controller_off(lab: Lab) -> str:
    """Stop slurmctld: no command of Slurm answers, jobs go on."""
    lab.require_up()
    stopped = stop(lab, ["slurmctld"])
    return "slurmctld stopped; jobs go on" if stopped else "slurmctld was stopped already"


def controller_on(lab: Lab) -> str:
    """Start slurmctld with the jobs that it saved; nothing to do where it runs."""
    lab.require_up()
    if running(lab, "slurmctld") is not None:
        return "slurmctld runs already"
    start_controller(lab, clean=False)
    for node in NODES:
        _wait_for_node(lab, node, lambda state: state != "unknown" and not state.endswith("*"))
    return f"slurmctld knows {len(ask(lab, 'squeue', '--noheader').splitlines())} jobs"


def accounting_off(lab: Lab) -> str:
    """Stop slurmdbd; the controller keeps what it would have told it."""
    _require_accounting(lab)
    stopped = stop(lab, ["slurmdbd"])
    result = call(lab, "sacct")
    words = (result.stderr.strip() or "nothing").splitlines()[-1]
    state = "stopped" if stopped else "was stopped already"
    return f"slurmdbd {state}; sacct now ends with status {result.returncode} and says: {words}"


def accounting_on(lab: Lab) -> str:
    """Start slurmdbd again; nothing to do where it runs."""
    _require_accounting(lab)
    if call(lab, "sacct").returncode == 0:
        return "slurmdbd runs already"
    stop(lab, ["slurmdbd"])
    start_accounting_daemon(lab)
    return "slurmdbd is back; sacct answers"


def _submit_fillers(lab: Lab, job: Job, fillers: list[str], node: str, cpus: int) -> None:
    """Until the preemption of the job has begun; the fillers' ids are added to the list."""
    for _ in range(_MOST_FILLERS):
        needed = free_cpus(lab, node) + cpus
        answer = ask(lab, "sbatch", "--parsable", *_FILLER, f"--nodelist={node}", f"--cpus-per-task={needed}")
        fillers.append(answer.partition(";")[0])

        def begun() -> bool:
            return _has_begun(read_job(lab, job.job_id), job)

        wait_until(lambda: begun() or not _are_queued(lab, fillers), _ENDED_S)
        if begun():
            return
    raise LabError(f"Slurm preempted other jobs, and not job {job.job_id}")


def _has_begun(now: Job, before: Job) -> bool:
    return now.preempt_time != before.preempt_time or now.restarts > before.restarts or now.state != "RUNNING"


def _is_out(now: Job, before: Job) -> bool:
    if now.state == "PENDING":
        return now.restarts > before.restarts
    return now.state not in _LIVE


def _are_queued(lab: Lab, jobs: list[str]) -> bool:
    return bool(ask(lab, "squeue", "--noheader", f"--jobs={','.join(jobs)}"))


def _describe(job: Job) -> str:
    reason = f" ({job.reason})" if job.reason != "None" else ""
    return f"{job.state}{reason}, restarts {job.restarts}"


def _require_state(lab: Lab, job_id: str, *states: str) -> Job:
    job = read_job(lab, job_id)
    if job.state not in states:
        raise RequestError(f"job {job_id} is {job.state}; this verb needs {' or '.join(states)}")
    return job


def _wait_for_job(lab: Lab, job_id: str, reached: Callable[[Job], bool], limit_s: float, what: str) -> Job:
    """The job once it is as wanted.

    Raises:
        LabError: not in time.
    """
    seen = read_job(lab, job_id)

    def look() -> bool:
        nonlocal seen
        seen = read_job(lab, job_id)
        return reached(seen)

    if not wait_until(look, limit_s):
        raise LabError(f"job {job_id} did not {what} in {limit_s:.0f} s; it is {_describe(seen)}")
    return seen


def _require_node(lab: Lab, node: str) -> str:
    """Its state."""
    lab.require_up()
    if node not in NODES:
        raise RequestError(f"got node {node!r}; the nodes are {', '.join(NODES)}")
    states = node_states(lab)
    if node not in states:
        raise LabError("slurmctld does not answer")
    return states[node]


def _wait_for_node(lab: Lab, node: str, reached: Callable[[str], bool]) -> None:
    if not wait_until(lambda: reached(node_states(lab).get(node, "unknown")), _SHOWN_S):
        raise LabError(f"node {node} is {node_states(lab).get(node)} after {_SHOWN_S:.0f} s")


def _require_accounting(lab: Lab) -> None:
    if not lab.require_up().accounting:
        raise RequestError("this lab was started with --no-accounting")
