"""The lab itself: that its faults are what Slurm makes of them, and that nothing of it stays behind."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcstab.launch.clusters import load_cluster
from tests.lab.conftest import NewLab
from tests.lab.running_lab import RunningLab

pytestmark = pytest.mark.slurm

SLEEP = "sleep 600"
ON_N1 = "--nodelist=n1"


@pytest.fixture(autouse=True)
def _empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").cancel_all()


def test_it_has_the_nodes_and_partitions_that_the_cluster_file_names(lab: RunningLab) -> None:
    assert lab.nodes() == {"n1": "idle", "n2": "idle"}
    cluster = load_cluster("lab")
    assert cluster.slurm is not None
    partitions = lab.slurm("sinfo", "--noheader", "--format=%P %G").split("\n")
    assert f"{cluster.slurm.partition}* gpu:a100:{cluster.slurm.gpus_per_node}" in partitions
    assert "GraceTime=0" in lab.slurm("scontrol", "show", "partition", "preempt")
    assert "GraceTime=20" in lab.slurm("scontrol", "show", "partition", "preempt-grace")
    assert "= lab" in next(
        line for line in lab.slurm("scontrol", "show", "config").splitlines() if line.startswith("ClusterName")
    )


def test_a_job_gets_gpus_and_is_accounted(lab: RunningLab, tmp_path: Path) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES $SLURM_JOB_GPUS $SLURM_JOB_ACCOUNT"
    first = lab.submit(f"{script}; sleep 4", "--gres=gpu:a100:3", ON_N1, f"--output={tmp_path}/first")
    second = lab.submit(script, "--gres=gpu:a100:1", ON_N1, f"--output={tmp_path}/second")
    for job in (first, second):
        lab.wait(lambda job=job: lab.accounted_states(job) == ["COMPLETED"], f"job {job} is accounted as completed")  # type: ignore[misc]
    seen = [(tmp_path / name).read_text().split() for name in ("first", "second")]
    assert seen == [["0,1,2", "0,1,2", "bcqs-delta-gpu"], ["3", "3", "bcqs-delta-gpu"]]
    allocated = lab.slurm(
        "sacct", "--allocations", "--noheader", "--parsable2", "--format=AllocTRES", f"--jobs={first}"
    )
    assert "gres/gpu=3" in allocated


def test_an_unknown_account_is_refused(lab: RunningLab) -> None:
    assert "Invalid account" in lab.slurm("sbatch", "--account=other", "--wrap=true", expect=1)


def test_preempt_ends_a_job_at_once_without_grace(lab: RunningLab) -> None:
    job = lab.submit_running(SLEEP, "--partition=preempt", "--gres=gpu:a100:1")
    assert f"job {job} was preempted" in lab.verb("preempt", job)
    assert (lab.state(job), lab.shown(job, "Reason"), lab.shown(job, "Restarts")) == ("PENDING", "BeginTime", "1")
    lab.wait(lambda: lab.accounted_states(job) == ["PREEMPTED", "PENDING"], "both attempts are accounted")
    assert not lab.slurm("squeue", "--noheader", "--name=lab-filler")


def test_preempt_leaves_the_grace_time(lab: RunningLab) -> None:
    job = lab.submit_running(SLEEP, "--partition=preempt-grace")
    answer = lab.verb("preempt", job)
    assert (lab.state(job), lab.shown(job, "Restarts")) == ("PENDING", "1")
    took_s = re.search(r"\(([0-9.]+) s\)$", answer.strip())
    assert took_s is not None
    assert float(took_s[1]) > 19, "GraceTime is 20 s"


def test_preempt_reaches_the_job_that_it_names(lab: RunningLab) -> None:
    """Slurm takes the youngest of equal jobs first."""
    older = lab.submit_running(SLEEP, "--partition=preempt", ON_N1)
    lab.submit_running(SLEEP, "--partition=preempt", ON_N1)
    lab.verb("preempt", older)
    assert lab.shown(older, "Restarts") == "1"


def test_a_requeued_element_of_an_array_starts_at_once_when_released(lab: RunningLab) -> None:
    array = lab.submit(SLEEP, "--array=0-1")
    element = f"{array}_1"
    lab.wait(lambda: lab.state(element) == "RUNNING", "the element runs")
    assert "is an array of 2" in lab.verb("requeue", array, expect=2)
    lab.verb("requeue", element)
    assert (lab.state(element), lab.shown(element, "Reason")) == ("PENDING", "BeginTime")
    lab.verb("release", element)
    lab.wait(lambda: lab.state(element) == "RUNNING", "it runs again")
    assert (lab.shown(element, "Restarts"), lab.shown(f"{array}_0", "Restarts")) == ("1", "0")


def test_a_failing_node_takes_its_job_along_and_comes_back(lab: RunningLab, tmp_path: Path) -> None:
    job = lab.submit_running(f"sleep 987654 & echo $! > {tmp_path}/pid; wait", ON_N1)
    lab.wait(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()), "the job has a child")
    lab.verb("node-down", "n1")
    assert lab.nodes()["n1"].startswith("down")
    assert not Path("/proc", (tmp_path / "pid").read_text().strip(), "cwd").exists(), "the job's child lives on"
    assert (lab.state(job), lab.shown(job, "Restarts")) == ("PENDING", "1")
    lab.wait(lambda: lab.accounted_states(job)[0] == "NODE_FAIL", "the attempt is accounted")
    lab.verb("node-up", "n1")
    assert lab.nodes() == {"n1": "idle", "n2": "idle"}
    lab.verb("release", job)
    lab.wait(lambda: lab.state(job) == "RUNNING", "it runs again")


def test_suspend_and_resume(lab: RunningLab) -> None:
    job = lab.submit_running(SLEEP)
    lab.verb("suspend", job)
    assert lab.state(job) == "SUSPENDED"
    lab.verb("resume", job)
    assert lab.state(job) == "RUNNING"
    assert f"job {job} is RUNNING; this verb needs SUSPENDED" in lab.verb("resume", job, expect=2)


def test_a_new_controller_knows_the_jobs(lab: RunningLab) -> None:
    running = lab.submit_running(SLEEP)
    held = lab.submit(SLEEP, "--hold")
    lab.verb("restart-controller")
    assert (lab.state(running), lab.state(held)) == ("RUNNING", "PENDING")
    assert lab.shown(running, "Restarts") == "0"


def test_without_the_accounting_daemon_the_queue_works(lab: RunningLab) -> None:
    lab.verb("accounting-off")
    assert "Connection refused" in lab.slurm("sacct", expect=1)
    job = lab.submit_running("sleep 1")
    assert job in lab.slurm("squeue", "--noheader")
    lab.verb("accounting-on")
    lab.wait(lambda: lab.accounted_states(job) == ["COMPLETED"], "what happened meanwhile is accounted")


def test_up_again_changes_nothing(lab: RunningLab) -> None:
    job = lab.submit_running(SLEEP)
    before = lab.verb("status")
    assert "up already" in lab.verb("up")
    pids = re.findall(r"pid \d+", before)
    assert len(pids) == 6
    assert re.findall(r"pid \d+", lab.verb("status")) == pids
    assert lab.state(job) == "RUNNING"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preempt", "1"], "Invalid job id"),
        (["release", "1;id"], "got job id '1;id'"),
        (["node-down", "n3"], "the nodes are n1, n2"),
        (["explode"], "invalid choice"),
    ],
)
def test_a_wrong_request_says_so(lab: RunningLab, arguments: list[str], message: str) -> None:
    assert message in lab.verb(*arguments, expect=2)


def test_a_job_that_is_never_preempted(lab: RunningLab) -> None:
    job = lab.submit_running(SLEEP)
    assert "partition gpuA100x4, which is never preempted" in lab.verb("preempt", job, expect=2)


def test_env_is_for_a_shell(lab: RunningLab) -> None:
    assert lab.verb("env") == f"export SLURM_CONF={lab.folder}/conf/slurm.conf\n"


def test_ports_are_on_loopback_only(lab: RunningLab) -> None:
    ports = {int(port) for port in re.findall(r"[pP]ort=(\d+)", (lab.folder / "conf/slurm.conf").read_text())}
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"]
    addresses = {address for address, port in (entry.split(":") for entry in listening) if int(port, 16) in ports}
    assert addresses == {"0100007F"}, "127.0.0.1, in the kernel's notation"


def test_user_signal_other_switches_and_down(new_lab: NewLab, tmp_path: Path) -> None:
    """One lab for three things: a switch, a restart with other switches, and what stays behind: nothing."""
    devices = sorted(Path("/dev").glob("nvidia*"))
    lab = new_lab("--user-signal", "--no-accounting")
    assert "accounting storage is disabled" in lab.slurm("sacct", expect=1)
    assert "started with --no-accounting" in lab.verb("accounting-off", expect=2)
    script = tmp_path / "step.sh"
    script.write_text(
        f"trap 'touch {tmp_path}/signalled' USR2\nsetsid sleep 600 &\ntouch {tmp_path}/started\n"
        "while :; do sleep 0.1; done\n"
    )
    job = lab.submit_running(f"srun bash {script}", "--partition=preempt-grace", "--signal=USR2@60")
    lab.wait((tmp_path / "started").exists, "the step waits for signals")
    lab.verb("preempt", "--no-wait", job)
    lab.wait((tmp_path / "signalled").exists, "the user signal came", limit_s=5)
    assert lab.state(job) == "RUNNING"

    assert "up again" in lab.verb("up", "--no-accounting")
    assert "preempt_send_user_signal" not in (lab.folder / "conf/slurm.conf").read_text()
    lab.submit_running("setsid sleep 600 & sleep 600")
    lab.wait(lambda: any(command.startswith("sleep 600") for command in lab.processes()), "the job has its processes")
    assert "4 daemons stopped" in lab.verb("down")
    assert lab.processes() == []
    assert not lab.folder.exists()
    assert sorted(Path("/dev").glob("nvidia*")) == devices
    assert "no lab" in lab.verb("down")
    assert "no lab" in lab.verb("status", expect=3)


def test_a_daemon_that_fails_leaves_nothing_running(new_lab: NewLab, tmp_path: Path) -> None:
    lab = new_lab()
    broken = tmp_path / "slurmd"
    broken.write_text("#!/bin/sh\necho the reason is this\nexit 7\n")
    broken.chmod(0o755)
    answer = lab.verb("up", "--no-accounting", expect=3, path=f"{tmp_path}:{os.environ['PATH']}")
    assert "slurmd-n1 ended with status 7" in answer
    assert "the reason is this" in answer
    assert lab.processes() == []
    assert not lab.folder.exists()


def test_a_folder_that_is_no_lab_is_not_touched(new_lab: NewLab) -> None:
    lab = new_lab()
    (lab.folder / "mine").write_text("keep")
    assert "is no lab" in lab.verb("up", "--no-accounting", expect=2)
    assert "no lab" in lab.verb("down")
    assert (lab.folder / "mine").read_text() == "keep"


def test_two_starts_at_once_are_refused(new_lab: NewLab) -> None:
    lab = new_lab()
    with socket.socket(socket.AF_UNIX) as lock:
        lock.bind(f"\0hpcstab-lab {lab.folder}")
        assert "starting or stopping" in lab.verb("up", expect=3)
