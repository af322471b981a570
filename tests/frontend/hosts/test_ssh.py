"""SSH with hosts that answer late, or never: every wait has an end, and every failure is a line."""

import contextlib
import os
import pathlib
import select
import shutil
import socket
import subprocess
import threading
import time

import pytest

from frontend.hosts.ssh import Connection, HostError, Login, Trust

needs_sshd = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("/usr/sbin/sshd") or not shutil.which("ssh-keygen"),
    reason="needs root and sshd",
)


class Way:
    """A way to a port, slow at first, that can be blocked: what is sent just does not arrive."""

    def __init__(self, port, late_secs=0.0):
        self._to, self._late = port, late_secs
        self.open = threading.Event()
        self.open.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._server.accept()
                threading.Thread(target=self._carry, args=(one,), daemon=True).start()

    def _carry(self, one):
        time.sleep(self._late)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(one)
            other = stack.enter_context(socket.create_connection(("127.0.0.1", self._to)))
            ways = {one: other, other: one}
            while not self._ended:
                for ready in select.select(list(ways), [], [], 0.1)[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    while not self.open.wait(0.1):
                        if self._ended:
                            return
                    ways[ready].sendall(data)

    def close(self):
        self._ended = True
        self._server.close()


@pytest.fixture
def sshd(start, free_port, tmp_path):
    """A real sshd of this machine; its port, and the key that it takes."""
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(argv, check=True)
    port = free_port()
    (tmp_path / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile none\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\n"
    )
    start(["/usr/sbin/sshd", "-D", "-e", "-f", tmp_path / "config"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    with contextlib.closing(socket.socket()) as probe:
        while probe.connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return port, str(tmp_path / "user")


@pytest.fixture
def connect(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(port, key="", timeout_secs=10.0):
            login = Login("127.0.0.1", port, "root", key_path=key)
            trust = Trust(str(tmp_path / "known_hosts"), accept_new=True, timeout_secs=timeout_secs)
            made = Connection(login, trust)
            stack.callback(made.close)
            return made

        yield make


def test_what_accepts_and_says_nothing_is_told_in_a_line(run_python):
    """In a process of its own, whose standard error is all that would be seen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "from frontend.hosts.ssh import *\n"
            f"try: Connection(Login('127.0.0.1', {port}, 'root'), Trust('none', timeout_secs=1))\n"
            "except HostError as error: print(error)"
        )
        done = run_python("-c", code)
    assert done.stderr == ""
    assert done.stdout == (
        f"no SSH with root@127.0.0.1:{port}: what listens there did not answer within 1 s "
        "(--ssh_timeout)\n"
    )


def test_what_is_no_ssh_is_told_in_a_line(run_python):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet():
            with contextlib.suppress(OSError):
                while True:
                    one, _ = server.accept()
                    one.sendall(b"220 mail.example.org\r\n")
                    one.close()

        threading.Thread(target=greet, daemon=True).start()
        code = (
            "from frontend.hosts.ssh import *\n"
            f"try: Connection(Login('127.0.0.1', {port}, 'root'), Trust('none', timeout_secs=5))\n"
            "except HostError as error: print(error)"
        )
        done = run_python("-c", code)
    assert done.stderr == ""
    assert done.stdout.startswith(f"no SSH with root@127.0.0.1:{port}: ")
    assert done.stdout.count("\n") == 1


@needs_sshd
@pytest.mark.slow
def test_a_host_that_answers_late_is_waited_for_and_no_longer(sshd, connect):
    port, key = sshd
    way = Way(port, late_secs=2.0)
    with pytest.raises(HostError, match=r"did not answer within 1 s \(--ssh_timeout\)"):
        connect(way.port, key, timeout_secs=1.0)
    assert connect(way.port, key).run("echo here; exit 7") == (7, "here\n", "")
    way.close()


@needs_sshd
@pytest.mark.slow
def test_a_host_that_falls_silent_is_given_up(sshd, connect, capfd):
    port, key = sshd
    way = Way(port)
    silent = r"root@127.0.0.1:\d+ did not answer for 2 s"
    # Before it takes the command, and while the command runs.
    connection = connect(way.port, key)
    assert connection.run("true")[0] == 0
    way.open.clear()
    with pytest.raises(HostError, match=r"did not answer|broke"):
        connection.run("true", timeout_secs=2.0)
    way.open.set()
    connection = connect(way.port, key)
    threading.Timer(1.0, way.open.clear).start()
    with pytest.raises(HostError, match=silent):
        connection.run("sleep 3; echo too late", timeout_secs=2.0)
    way.close()
    time.sleep(0.5)
    assert "Traceback" not in capfd.readouterr().err


@needs_sshd
@pytest.mark.slow
def test_a_command_that_closes_its_output_and_goes_on_is_given_up(sshd, connect):
    port, key = sshd
    begun = time.monotonic()
    with pytest.raises(HostError, match="did not answer for 1 s"):
        connect(port, key).run("exec >&- 2>&-; sleep 30", timeout_secs=1.0)
    assert time.monotonic() - begun < 25


@needs_sshd
@pytest.mark.slow
def test_a_call_without_a_deadline_gets_one(sshd, connect):
    from frontend.hosts import ssh

    port, key = sshd
    way = Way(port)
    connection = connect(way.port, key)
    channel = connection._client.get_transport().open_session(timeout=10)
    way.open.clear()
    with pytest.raises(TimeoutError), ssh._closed_after(channel, 1.0):
        channel.exec_command("true")  # waits for the host's word on it
    way.close()
