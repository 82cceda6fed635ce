"""A Slurm cluster of two nodes on this machine, all of it in one folder and under the user who starts it.

The nodes are named by loopback addresses, so that no host name has to be made known anywhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
NODES = ("127.0.0.1", "127.0.0.2")
_CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={control}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=2
SlurmdTimeout=300
SchedulerParameters=sched_interval=2,batch_sched_delay=0,requeue_delay=1
NodeName={first} NodeHostname={host} NodeAddr={first} Port={port_first} CPUs=2 RealMemory=4096 State=UNKNOWN
NodeName={second} NodeHostname={host} NodeAddr={second} Port={port_second} CPUs=2 RealMemory=4096 State=UNKNOWN
PartitionName=main Nodes={first},{second} Default=YES MaxTime=60 State=UP
"""


def missing_programs() -> list[str]:
    """The programs of Slurm and munge that are not installed here; Debian's slurm-wlm and munge have them."""
    return [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]


class LoopbackCluster:
    """Two nodes of two CPUs; starting one that runs already does nothing.

    Args:
        folder: an empty or new folder on a local disk, or one of an earlier start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _search_path()}

    def start(self) -> None:
        """Start the daemons and wait for both nodes."""
        if self.is_up():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        self._start_munge()
        self._write_config()
        self._run("slurmctld", "-c")
        for node in NODES:
            self._run("slurmd", "-N", node)
        self.wait_until(self.is_up, seconds=120)

    def stop(self) -> None:
        """Cancel all jobs and end the daemons that this folder names."""
        if _is_alive(self.folder / "slurmctld.pid"):
            self.cancel_all()
            self._run("scontrol", "shutdown")
        # Munge last: the others still talk to each other.
        for name in ("slurmctld", *(f"slurmd-{node}" for node in NODES), "munged"):
            pid_file = self.folder / f"{name}.pid"
            _signal(pid_file, signal.SIGTERM)
            self.wait_until(lambda pid_file=pid_file: not _is_alive(pid_file), seconds=120)

    def cancel_all(self) -> None:
        """Cancel all jobs and wait until their processes are gone: daemons outlive a shutdown for them."""
        self._run("scancel", "--user=" + self._run("id", "-un").strip())
        self.wait_until(lambda: not self._run("squeue", "--noheader"), seconds=120)

    def is_up(self) -> bool:
        """Whether both nodes take jobs."""
        if not _is_alive(self.folder / "slurmctld.pid"):  # asking a controller that is not there takes a minute
            return False
        try:
            states = self._run("sinfo", "--noheader", "--Node", "--format=%T").split()
        except subprocess.CalledProcessError:
            return False
        return len(states) == len(NODES) and all(state in ("idle", "mixed", "allocated") for state in states)

    def run(self, *command: str) -> str:
        """The output of one of Slurm's commands, or of another one, in the cluster's environment."""
        return self._run(*command)

    def wait_until(self, condition, *, seconds: float) -> None:
        """Poll a condition; TimeoutError with the controller's last words if it does not come true."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                log = self.folder / "slurmctld.log"
                words = log.read_text()[-1500:] if log.exists() else "(none)"
                raise TimeoutError(f"not so after {seconds} s; the controller's last words:\n{words}")
            time.sleep(0.25)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        paths = {
            "socket": "munge.socket",
            "log-file": "munged.log",
            "pid-file": "munged.pid",
            "seed-file": "munge.seed",
        }
        options = [f"--{option}={self.folder / name}" for option, name in paths.items()]
        self._run("munged", "--force", f"--key-file={key}", *options)

    def _write_config(self) -> None:
        ports = _free_ports(3)
        config = _CONFIG.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            user=self._run("id", "-un").strip(),
            first=NODES[0],
            second=NODES[1],
            control=ports[0],
            port_first=ports[1],
            port_second=ports[2],
        )
        (self.folder / "slurm.conf").write_text(config)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout


@contextlib.contextmanager
def running(folder: Path) -> Iterator[LoopbackCluster]:
    """A cluster for the time of a `with` block."""
    cluster = LoopbackCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _search_path() -> str:
    """With the folders of daemons, which a user's own path often lacks."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _is_alive(pid_file: Path) -> bool:
    return _signal(pid_file, 0)


def _signal(pid_file: Path, number: int) -> bool:
    """Send a signal to the process of a pid file; whether there was one."""
    try:
        os.kill(int(pid_file.read_text()), number)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return False
    return True


if __name__ == "__main__":
    # python tests/cluster/loopback.py start|stop FOLDER: for trying things by hand.
    chosen = LoopbackCluster(Path(sys.argv[2]))
    {"start": chosen.start, "stop": chosen.stop}[sys.argv[1]]()
    print(f"export SLURM_CONF={chosen.environment['SLURM_CONF']}")
