"""--sync_code and --setup bring a bare host to a running actor, over a real sshd."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from frontend.hosts import sync
from frontend.hosts.hosts import Hosts, HostSpec
from frontend.hosts.ssh import HostError, Login, Trust
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def login(start, tmp_path, free_port):
    """A login to an sshd of this machine, and which hosts are known."""
    if os.geteuid() != 0 or not pathlib.Path("/usr/sbin/sshd").exists():
        pytest.skip("needs root and openssh-server")
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "id"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(argv, check=True)
    port = free_port()
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nUsePAM no\n"
        f"AuthorizedKeysFile {tmp_path}/id.pub\nPermitRootLogin yes\nStrictModes no\n"
        f"PidFile {tmp_path}/sshd.pid\n"
    )
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}")
    start(["/usr/sbin/sshd", "-D", "-f", config])
    deadline = time.monotonic() + 10
    while not (tmp_path / "sshd.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return Login("127.0.0.1", port, "root", "", str(tmp_path / "id")), Trust(str(known))


def test_a_bare_host_gets_the_project_and_what_an_actor_needs(login, tmp_path):
    who, trust = login
    folder = tmp_path / "there" / "impala"
    spec = HostSpec("there", who, str(folder), ".venv/bin/python")
    with Hosts(trust, 4) as hosts:
        with pytest.raises(HostError, match="project folder missing"):
            hosts.ask(spec, {"op": "facts"})
        files = sync.project_files(ROOT)
        assert "experiment.py" in files
        assert not [name for name in files if name.startswith((".venv", ".git/", "logs"))]
        assert sync.sync(hosts, spec, ROOT, files) == len(files)
        assert sync.sync(hosts, spec, ROOT, files) == 0
        with pytest.raises(HostError, match=r"no Python there: .venv/bin/python"):
            hosts.ask(spec, {"op": "facts"})
        assert "ready" in sync.set_up(hosts, spec)
        facts = hosts.ask(spec, {"op": "facts"})
        assert None not in facts["packages"].values()
        # No Horovod, no MPI.
        facts = hosts.ask(spec, {"op": "facts", "learner": True})
        assert facts["packages"]["horovod"] is None
        assert facts["packages"]["mpi4py"] is None
        code, _, err = hosts.run(spec, f"cd '{folder}' && .venv/bin/python experiment.py --help")
        assert code == 0, err


def test_an_interpreter_without_packages_is_told(login, tmp_path):
    who, trust = login
    (tmp_path / "frontend" / "scripts").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'absl'\" >&2; exit 1\n"
    )
    python.chmod(0o755)
    with Hosts(trust, 4) as hosts:
        spec = HostSpec("there", who, str(tmp_path), str(python))
        with pytest.raises(HostError, match=r"No module named 'absl'; --setup installs"):
            hosts.ask(spec, {"op": "facts"})


def test_a_setup_that_cannot_be_is_told(login, tmp_path):
    who, trust = login
    with Hosts(trust, 4) as hosts:
        spec = HostSpec("there", who, str(tmp_path), "python3")
        with pytest.raises(HostError, match="--setup makes a virtual environment"):
            sync.set_up(hosts, spec)
        spec = HostSpec("there", who, str(tmp_path), ".venv/bin/python")
        with pytest.raises(HostError, match="--setup failed"):
            sync.set_up(hosts, spec)
        spec = HostSpec("there", who, "/proc/none", sys.executable)
        with pytest.raises(HostError, match="cannot make the project folder"):
            sync.sync(hosts, spec, ROOT, ["experiment.py"])
