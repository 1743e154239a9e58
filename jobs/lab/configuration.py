"""The text of slurm.conf, gres.conf and slurmdbd.conf, and the ports in them."""

from __future__ import annotations

import re
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from settings import (
    ACCOUNT,
    CPUS_PER_NODE,
    GPUS_PER_NODE,
    MEMORY_PER_NODE_MIB,
    NODES,
    PREEMPTING_PARTITION,
    Lab,
    Switches,
)

CLUSTER_NAME = "lab"
KILL_WAIT_S = 10
GRACE_S = 20

_PORTS = ("slurmctld", *(f"slurmd-{node}" for node in NODES), "slurmdbd", "mariadbd")
_FIRST_JOB_IDS = 50_000_000


def free_ports() -> dict[str, int]:
    """A port for each daemon, free on loopback now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _PORTS]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(_PORTS, sockets, strict=True)}


def write_configuration(lab: Lab, switches: Switches, ports: dict[str, int], password: str) -> None:
    """All files that the daemons read; the one with the password for its owner only."""
    (lab.folder / "conf" / "gres.conf").write_text(
        f"NodeName={_node_list()} Name=gpu Type=a100 File={lab.folder}/dev/nvidia[0-{GPUS_PER_NODE - 1}]\n"
    )
    lab.slurm_conf.write_text(_slurm_conf(lab, switches, ports))
    if switches.accounting:
        _write_secret(lab.folder / "conf" / "slurmdbd.conf", _slurmdbd_conf(lab, ports, password))


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _node_list() -> str:
    return ",".join(NODES)


def _slurm_conf(lab: Lab, switches: Switches, ports: dict[str, int]) -> str:
    text = f"""
        ClusterName={CLUSTER_NAME}
        SlurmctldHost=localhost(127.0.0.1)
        SlurmctldPort={ports["slurmctld"]}
        SlurmUser=root
        SlurmdUser=root
        # every daemon runs under the host name localhost: with these, Slurm binds its ports on loopback only
        CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
        AuthType=auth/munge
        AuthInfo=socket={lab.munge_socket}
        # ids of an earlier lab are not used again; nor are they shorter than on a real cluster
        FirstJobId={int(time.time()) % _FIRST_JOB_IDS}

        StateSaveLocation={lab.folder}/state
        SlurmdSpoolDir={lab.folder}/spool/%n
        SlurmctldPidFile={lab.folder}/spool/slurmctld.pid
        SlurmdPidFile={lab.folder}/spool/slurmd-%n.pid
        SlurmctldLogFile={lab.log("slurmctld")}
        SlurmdLogFile={lab.folder}/logs/slurmd-%n.log

        # no cgroups: works in a container
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        JobAcctGatherType=jobacct_gather/linux
        MpiDefault=none
        MailProg=/bin/true

        SelectType=select/cons_tres
        SelectTypeParameters=CR_Core_Memory
        # nodes may have more cores and memory than this machine
        SlurmdParameters=config_overrides
        DefMemPerCPU=500
        GresTypes=gpu

        JobRequeue=1
        ReturnToService=2
        # 30 s on most clusters; shorter, since a run stays alive until it is killed and tests wait for it
        KillWait={KILL_WAIT_S}
        PreemptType=preempt/partition_prio
        PreemptMode=REQUEUE
        SchedulerParameters=sched_interval=1,bf_interval=2,preempt_youngest_first
        """
    if switches.user_signal:
        text += "SlurmctldParameters=preempt_send_user_signal\n"
    text += _accounting(lab, switches, ports)
    for node in NODES:
        text += (
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[f'slurmd-{node}']} "
            f"CPUs={CPUS_PER_NODE} RealMemory={MEMORY_PER_NODE_MIB} Gres=gpu:a100:{GPUS_PER_NODE} State=UNKNOWN\n"
        )
    common = f"Nodes={_node_list()} DefaultTime=01:00:00 MaxTime=2-00:00:00 State=UP"
    text += f"""
        PartitionName={PREEMPTING_PARTITION} Default=YES PriorityTier=10 PreemptMode=OFF {common}
        PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 {common}
        PartitionName=preempt-grace PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_S} {common}
        """
    return re.sub(r"(?m)^ +", "", text).lstrip()


def _accounting(lab: Lab, switches: Switches, ports: dict[str, int]) -> str:
    if not switches.accounting:
        return "AccountingStorageType=accounting_storage/none\n"
    return (
        "AccountingStorageType=accounting_storage/slurmdbd\n"
        "AccountingStorageHost=127.0.0.1\n"
        f"AccountingStoragePort={ports['slurmdbd']}\n"
        f"AccountingStoragePass={lab.munge_socket}\n"
        "AccountingStorageTRES=gres/gpu\n"
        f"# as on a real cluster, an account other than {ACCOUNT} is refused\n"
        "AccountingStorageEnforce=associations,limits\n"
    )


def _slurmdbd_conf(lab: Lab, ports: dict[str, int], password: str) -> str:
    return (
        "AuthType=auth/munge\n"
        f"AuthInfo=socket={lab.munge_socket}\n"
        "CommunicationParameters=NoInAddrAny\n"
        "DbdHost=localhost\n"
        "DbdAddr=127.0.0.1\n"
        f"DbdPort={ports['slurmdbd']}\n"
        "SlurmUser=root\n"
        f"LogFile={lab.log('slurmdbd')}\n"
        f"PidFile={lab.folder}/spool/slurmdbd.pid\n"
        "StorageType=accounting_storage/mysql\n"
        "StorageHost=127.0.0.1\n"
        f"StoragePort={ports['mariadbd']}\n"
        "StorageUser=slurm\n"
        f"StoragePass={password}\n"
        "StorageLoc=slurm_acct_db\n"
    )
