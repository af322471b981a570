"""A Slurm of this machine alone, for tests: two nodes, one of them with a GPU in name.

munged, slurmctld and a slurmd for each node run as processes of the test session with all their
files in a temporary folder, on free ports, and are ended by their ids. Nothing is installed: where
a program is missing, or Slurm does not come up, the tests are skipped with the reason.
"""

import contextlib
import os
import pathlib
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "salloc", "sbatch", "scontrol", "sinfo")
# The first can be looked up, for a learner's endpoint; of the others Slurm alone asks.
NODES = ("127.0.0.1", "node2")
GPU_NODE = NODES[0]
CPUS = 4
_UP_SECS = 30.0
_CONF = """\
ClusterName=rig
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=all Nodes=ALL Default=YES OverSubscribe=FORCE:8 MaxTime=INFINITE State=UP
"""


class Slurm:
    """A running Slurm."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(
        self, argv: Sequence[str], timeout: float = 60, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        """Runs a command of Slurm to its end."""
        return subprocess.run(
            argv,
            env={**os.environ, **self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextlib.contextmanager
    def allocated(self, *options: str) -> Iterator[dict[str, str]]:
        """An allocation of salloc's: yields its environment, and gives it back."""
        said = self.folder / f"allocation-{secrets.token_hex(4)}"
        # Its shell says what the environment is and stays until it is told to go.
        script = 'env -0 >"$0.part" && mv "$0.part" "$0" && read -r line'
        process = subprocess.Popen(
            ["salloc", *options, "bash", "-c", script, str(said)],
            env={**os.environ, **self.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait(lambda: said.exists() or process.poll() is not None, "an allocation")
            pairs = said.read_text().rstrip("\0").split("\0")
            yield dict(pair.split("=", 1) for pair in pairs)
        finally:
            process.communicate(b"go\n", timeout=30)


@contextlib.contextmanager
def running(folder: pathlib.Path) -> Iterator[Slurm]:
    """Starts Slurm in an empty folder; skips the test where that cannot be."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"Slurm is not installed: there is no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root can run a Slurm of its own here")
    slurm = Slurm(folder)
    with contextlib.ExitStack() as stack:

        def start(name: str, argv: Sequence[str], **kwargs) -> None:
            output = stack.enter_context(open(folder / f"{name}.out", "w"))
            process = subprocess.Popen(
                [shutil.which(argv[0], path=path) or argv[0], *argv[1:]],
                env={**os.environ, **slurm.env},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **kwargs,
            )
            stack.callback(_end, process)

        try:
            _configure(folder)
            _start_munge(folder, start)
            conf = slurm.env["SLURM_CONF"]
            start("slurmctld", ["slurmctld", "-D", "-f", conf])
            for node in NODES:
                start(f"slurmd.{node}", ["slurmd", "-D", "-f", conf, "-N", node])
            _wait(lambda: _nodes_up(slurm), "its nodes")
        except (OSError, KeyError, TimeoutError) as error:
            tails = [_tail(path) for path in sorted(folder.glob("*.out"))]
            pytest.skip(f"Slurm does not start here: {error!r}; {' '.join(tails)}")
        yield slurm


def _configure(folder: pathlib.Path) -> None:
    ports = _free_ports(1 + len(NODES))
    here = socket.gethostname().split(".")[0]
    lines = [
        f"NodeName={node} NodeHostname={here} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS}"
        + (" Gres=gpu:1" if node == GPU_NODE else "")
        for node, port in zip(NODES, ports[1:], strict=True)
    ]
    text = _CONF.format(folder=folder, host=here, controller=ports[0], nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(text)
    # A file that every machine has stands for the GPU.
    (folder / "gres.conf").write_text(f"NodeName={GPU_NODE} Name=gpu File=/dev/null\n")
    folders = [f"{name}.{node}" for name in ("spool", "tmp") for node in NODES]
    for name in ("state", "munge", *folders):
        (folder / name).mkdir()


def _start_munge(folder: pathlib.Path, start: Callable) -> None:
    munge = folder / "munge"
    (munge / "key").write_bytes(secrets.token_bytes(1024))
    (munge / "key").chmod(0o600)
    # It refuses to run as root, and every folder above its socket must be open to all.
    user = pwd.getpwnam("munge")
    for path in (munge, munge / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    munge.chmod(0o755)
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
    options = [f"--{option}={munge / name}" for option, name in files.items()]
    start(
        "munged",
        ["munged", "--foreground", *options, f"--seed-file={munge / 'seed'}"],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
    )
    _wait((munge / "socket").exists, "munge")


def _nodes_up(slurm: Slurm) -> bool:
    said = slurm.run(["sinfo", "--noheader", "--Node", "--format=%T"])
    return said.stdout.split() == ["idle"] * len(NODES)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _UP_SECS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_UP_SECS:.0f} s for {what}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    if process.poll() is None:
        process.kill()
    process.wait(timeout=10)


def _tail(path: pathlib.Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return f"{path.stem}: {lines[-1]}" if lines else ""
