"""Brings the project to the hosts, and sets actors' hosts up: --sync_code, --setup.

The files are those of git (tracked ones, and new ones that it does not ignore), or of the folder
where there is no git. The host names the hashes of what it has; only what differs is sent, as one
archive over the SSH connection.
"""

import hashlib
import io
import pathlib
import subprocess
import tarfile
from collections.abc import Sequence
from typing import TextIO

from frontend.hosts.hosts import Hosts, HostSpec, shell_path
from frontend.hosts.ssh import HostError
from frontend.run_plan import ROOT, Plan

_LEFT_OUT = {".git", ".venv", "logs", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
_GIT_SECS = 60.0
_SYNC_SECS = 300.0
_SETUP_SECS = 1800.0


def sync_and_set_up(run: Plan, hosts: Hosts, out: TextIO) -> dict[HostSpec, str]:
    """Syncs, and sets up, as the flags say; tells of it. Returns the hosts that failed, and why."""
    specs = [host.spec for host in run.hosts if not host.spec.is_here]
    failed: dict[HostSpec, str] = {}
    if run.options.sync_code:
        files = project_files(ROOT)
        for spec, sent in hosts.on_all(specs, lambda spec: sync(hosts, spec, ROOT, files)).items():
            if isinstance(sent, HostError):
                failed[spec] = str(sent)
            else:
                print(f"{spec.name}: {sent} of {len(files)} files sent", file=out, flush=True)
    if run.options.setup:
        print("setting hosts up (the first time takes minutes) ...", file=out, flush=True)
        actors = [
            host.spec
            for host in run.hosts
            if host.spec in specs and host.spec not in failed and not host.learners
        ]
        for spec, said in hosts.on_all(actors, lambda spec: set_up(hosts, spec)).items():
            if isinstance(said, HostError):
                failed[spec] = str(said)
            else:
                print(f"{spec.name}: {said}", file=out, flush=True)
    return failed


def project_files(root: pathlib.Path) -> list[str]:
    """Names of the project's files, relative to its folder."""
    argv = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_GIT_SECS)
        names = done.stdout.split("\0") if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        names = []
    if not any(names):
        names = [str(path.relative_to(root)) for path in root.rglob("*")]
    return sorted(
        name
        for name in names
        if name and (root / name).is_file() and not _LEFT_OUT & set(pathlib.Path(name).parts)
    )


def sync(hosts: Hosts, spec: HostSpec, root: pathlib.Path, files: Sequence[str]) -> int:
    """Copies what differs to a host's project folder. Returns how many files. Raises HostError."""
    folder = shell_path(spec.workdir)
    # The first time there is no project yet, and so no file of it that could run there. Names that
    # the host does not have are what is wanted, not failures.
    code, out, err = hosts.run(
        spec,
        f"mkdir -p {folder} && cd {folder} && (xargs -0 sha256sum -- 2>/dev/null || true)",
        "\0".join(files).encode(),
        _SYNC_SECS,
    )
    if code != 0:
        raise HostError(f"cannot make the project folder {spec.workdir}: {err.strip()}")
    pairs = (line.split("  ", 1) for line in out.splitlines() if "  " in line)
    there = {name: digest for digest, name in pairs}
    changed = [name for name in files if there.get(name) != _hash(root / name)]
    if changed:
        code, _, err = hosts.run(
            spec, f"cd {folder} && tar -xzf -", _archive(root, changed), _SYNC_SECS
        )
        if code != 0:
            raise HostError(f"cannot copy the project to {spec.workdir}: {err.strip()}")
    return len(changed)


def set_up(hosts: Hosts, spec: HostSpec) -> str:
    """Makes an actor's virtual environment on a host. Returns what the set-up said last."""
    python = pathlib.PurePosixPath(spec.python)
    if python.parts[-2:-1] != ("bin",):
        raise HostError(
            f"--setup makes a virtual environment, and {spec.python} is in none: let "
            "--remote_python or the CSV's python be such as .venv/bin/python"
        )
    venv = shell_path(str(python.parent.parent))
    command = f"cd {shell_path(spec.workdir)} && VENV={venv} bash docker/setup.sh actor"
    code, out, err = hosts.run(spec, command, timeout_secs=_SETUP_SECS)
    if code != 0:
        last = (err.strip() or out.strip()).splitlines()[-3:]
        raise HostError(f"--setup failed: {' / '.join(last)}")
    return (out.strip().splitlines() or ["ready"])[-1]


def _hash(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _archive(root: pathlib.Path, names: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for name in names:
            archive.add(root / name, arcname=name)
    return buffer.getvalue()
