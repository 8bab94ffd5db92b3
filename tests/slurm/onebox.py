"""A real Slurm on this machine alone, without systemd: a controller, one node, and two partitions.

Jobs of partition ``high`` take the place of those of ``low``, which have five seconds to save their state and are
queued again. Needs root and Debian's packages (``PACKAGES``). There is no accounting: sacct knows nothing.
"""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
START_SECONDS = 30
CONF = """
ClusterName=onebox
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that was queued again waits until its old credential has expired: 12 seconds in place of 121.
AuthInfo=cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MpiDefault=none
KillWait=10
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=5 MaxTime=60 State=UP
PartitionName=high Nodes={host} Default=NO PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
"""


@contextmanager
def one_box_slurm(folder: Path, *, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Run Slurm's daemons within the block; yield the environment of who submits to it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    configuration.write_text(CONF.format(host=host, folder=folder, cpus=cpus))
    if not re.search(r" (1\d|2[0-2])\.", subprocess.run(["slurmctld", "-V"], capture_output=True, text=True).stdout):
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")  # 23.02 and later ask for systemd without it
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    daemons = _start_munge()
    try:
        daemons += [subprocess.Popen([name, "-D"], env=environment) for name in ("slurmctld", "slurmd")]
        _wait_for_the_node(environment, folder)
        yield environment
    finally:
        _end_jobs(environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def _start_munge() -> list[subprocess.Popen]:
    """Start munged, which signs Slurm's messages, unless this machine has one."""
    subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
    if subprocess.run(["pgrep", "-x", "munged"], capture_output=True).returncode == 0:
        return []
    if not Path("/etc/munge/munge.key").exists():  # the package makes it, but not in every container
        subprocess.run(["runuser", "-u", "munge", "--", "mungekey", "--create"], check=True)
    return [subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--foreground"], stderr=subprocess.DEVNULL)]


def _end_jobs(environment: dict[str, str]) -> None:
    """Cancel all jobs and wait until they have ended: without a controller a task's last process would stay."""
    subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=30)
    for _ in range(10 * START_SECONDS):
        if not subprocess.run(["squeue", "-h"], env=environment, capture_output=True, timeout=30).stdout:
            return
        time.sleep(0.1)


def _wait_for_the_node(environment: dict[str, str], folder: Path) -> None:
    for _ in range(10 * START_SECONDS):
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        if "idle" in asked.stdout:
            return
        time.sleep(0.1)
    raise RuntimeError(f"Slurm did not start within {START_SECONDS} seconds; see the logs in {str(folder)!r}")
