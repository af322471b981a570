"""What is done on a host: files and windows of a run, and nothing of anybody else's."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from frontend import record
from frontend.hosts import facts, host
from frontend.hosts.tmux import Session
from impala_torch.flags.errors import UserError
from tests.conftest import ROOT, fill

RUN = "20260101-000000-abcd"


@pytest.fixture
def home(tmux_env, monkeypatch):
    """A home and a tmux server of the test's own, in this process."""
    for name in ("HOME", "TMUX_TMPDIR"):
        monkeypatch.setenv(name, tmux_env[name])
    monkeypatch.delenv("TMUX", raising=False)
    return pathlib.Path(tmux_env["HOME"])


def request(op, **fields):
    return {"op": op, "session": "impala", "run_id": RUN, **fields}


def start(*windows, run_id=RUN, **files):
    return host.handle(
        {**request("start", files=files, cwd="~", windows=list(windows)), "run_id": run_id}
    )


def test_windows_are_started_once_and_again_when_they_are_gone(home):
    both = (["one", ["sleep", "600"]], ["two", ["bash", "-c", "exit 7"]])
    assert start(*both) == {"started": ["one", "two"]}
    deadline = time.monotonic() + 10
    while (seen := host.handle(request("windows", logs="~/logs"))["windows"])[1][
        "exit_code"
    ] is None:
        assert time.monotonic() < deadline
    assert [window["exit_code"] for window in seen] == [None, 7]
    assert start(*both) == {"started": ["two"]}
    assert start(["three", ["sleep", "600"]]) == {"started": ["three"]}
    assert set(host.handle(request("end"))["ended"]) >= {"one", "three"}
    assert not Session("impala").exists()


def test_a_full_disk_is_told_with_the_folder(home, small_disk, monkeypatch):
    monkeypatch.setenv("HOME", str(small_disk))
    host.handle(request("put"))
    fill(small_disk / "big")
    for one in (request("put", files={"x": "y" * 9000}), request("start", windows=[], files={})):
        one = {**one, "windows": [["one", ["true"]]], "cwd": "~"}
        with pytest.raises(UserError) as caught:
            host.handle(one)
        folder = small_disk / ".impala_torch" / RUN
        assert str(caught.value) == f"{folder} cannot be written to: No space left on device"
        assert not list(folder.glob(".x*"))


def test_files_are_for_the_owner_and_go_at_the_end(home):
    start(["one", ["sleep", "600"]], **{"actor.key": "secret"})
    folder = home / ".impala_torch" / RUN
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "actor.key").stat().st_mode & 0o777 == 0o600
    assert (folder / "actor.key").read_text() == "secret"
    host.handle(request("end", keep=True))
    assert not (folder / "actor.key").exists()
    assert (folder / "one.sh").exists()
    host.handle(request("end"))
    assert not folder.exists()


def test_anothers_session_is_left_alone(home):
    start(["one", ["sleep", "600"]], run_id="20260101-000000-0000")
    with pytest.raises(UserError, match="of run 20260101-000000-0000 exists there"):
        start(["one", ["sleep", "600"]])
    assert host.handle(request("windows", logs="~"))["windows"] == []
    assert host.handle(request("end"))["ended"] == []
    assert Session("impala").exists()


def test_what_ignores_its_terminals_end_is_ended_by_its_id(home, monkeypatch):
    monkeypatch.setattr("frontend.hosts.tmux._END_SECS", 1.0)
    pid = home / "pid"
    script = f"trap '' HUP TERM INT; echo $$ > {pid}; while :; do sleep 0.1; done"
    start(["stubborn", ["bash", "-c", script]])
    deadline = time.monotonic() + 10
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline
    host.handle(request("end"))
    time.sleep(0.2)
    stat = pathlib.Path(f"/proc/{int(pid.read_text())}/stat")
    assert not stat.exists() or " Z " in stat.read_text()


def test_what_runs_in_vain_is_ended_and_started_again(home, monkeypatch):
    monkeypatch.setattr("frontend.hosts.tmux._END_SECS", 0.5)
    pids = home / "pids"
    script = f"trap '' HUP TERM INT; echo $$ >> {pids}; kill -STOP $$"
    windows = [["hung", ["bash", "-c", script]], ["well", ["sleep", "600"]]]

    def started(count):
        deadline = time.monotonic() + 20
        while len(lines := pids.read_text().split() if pids.exists() else []) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return int(lines[-1])

    start(*windows)
    first = started(1)
    both = {**request("start", files={}, cwd="~", windows=windows), "hung": ["hung", "none"]}
    assert host.handle(both) == {"started": ["hung"]}
    assert started(2) != first
    stat = pathlib.Path(f"/proc/{first}/stat")
    assert not stat.exists() or " Z " in stat.read_text()
    # Also where it is the last window, with which its session goes.
    Session("impala").kill_windows(["well"])
    assert host.handle({**both, "windows": windows[:1]}) == {"started": ["hung"]}
    assert started(3)
    assert Session("impala").owner() == RUN
    host.handle(request("end"))


@pytest.mark.slow
def test_a_tmux_that_hangs_is_not_waited_for(home, monkeypatch):
    monkeypatch.setattr("frontend.hosts.tmux._TMUX_SECS", 1.0)
    start(["one", ["sleep", "600"]])
    argv = ["tmux", "display-message", "-p", "#{pid}"]
    server = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    os.kill(server, signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match="tmux did not answer 'list-panes' within 1 s"):
            Session("impala").windows()
    finally:
        os.kill(server, signal.SIGCONT)
    host.handle(request("end"))


def test_what_runs_left_long_ago_goes_with_the_next_one(home):
    old = home / ".impala_torch" / "20250101-000000-abcd"
    other = home / ".impala_torch" / "sessions"
    for folder in (old, other):
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    host.handle(request("put", files={}))
    assert not old.exists()
    assert other.exists()
    assert host._RUN_ID.fullmatch(record.new_id())


def test_a_log_is_read_from_its_end_and_then_on(home):
    log = home / "x.log"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    reply = host.handle(request("log", path="~/x.log", lines=2))
    assert reply == {"text": "line 98\nline 99\n", "offset": log.stat().st_size}
    with open(log, "a") as file:
        file.write("äöü\n")
    reply = host.handle(request("log", path="~/x.log", offset=reply["offset"]))
    assert reply == {"text": "äöü\n", "offset": log.stat().st_size}
    assert host.handle(request("log", path="~/none", lines=2))["missing"]


def test_a_request_on_standard_input_is_answered_behind_the_mark(home):
    done = subprocess.run(
        [sys.executable, "-m", "frontend.hosts.host"],
        input=json.dumps({"op": "facts", "learner": True}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.startswith(host.REPLY)
    reply = json.loads(done.stdout.removeprefix(host.REPLY))
    assert reply["ok"]
    assert reply["packages"]["torch"]
    assert abs(reply["time"] - time.time()) < 60


def test_links_are_measured_and_ports_are_tried(free_port):
    port = free_port()
    where = {"ip": "127.0.0.1", "port": port}
    listening = threading.Thread(
        target=facts.listen, args=({**where, "count": 1, "secs": 20},), daemon=True
    )
    listening.start()
    link = facts.measure(where)
    listening.join(10)
    assert 0 < link["latency_secs"] < 1
    assert link["bytes_per_sec"] > 1e6
    with pytest.raises(UserError, match=f"cannot reach 127.0.0.1:{port}"):
        facts.measure(where)
    with socket.create_server(("127.0.0.1", port)):
        found = facts.gather({"ports": [["127.0.0.1", port]]})
    assert found["taken_ports"] == [["127.0.0.1", port, "Address already in use"]]
    assert "horovod" not in found["packages"]
