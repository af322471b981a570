"""Windows of a real tmux server, which each test has to itself."""

import os
import subprocess
import time
import uuid

import pytest

from frontend.hosts.tmux import Session, WindowState
from impala_torch.flags.errors import UserError


@pytest.fixture
def socket_name():
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    subprocess.run(["tmux", "-L", name, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def session(socket_name):
    return Session("run", socket_name)


def wait_until(condition, secs=20.0):
    deadline = time.monotonic() + secs
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true")


def test_commands_run_each_in_its_window_and_directory(session, tmp_path):
    words = ["a b", "it's", '"$HOME"', "#{x}", "end;", ";"]
    show = ["bash", "-c", 'printf "%s\\n" "$PWD" "$@" > "$0"; sleep 60']
    session.start([(name, [*show, f"{name}.txt", *words]) for name in ("one", "two")], cwd=tmp_path)
    assert session.windows() == [WindowState("one", None), WindowState("two", None)]
    for name in ("one", "two"):
        path = tmp_path / f"{name}.txt"
        wait_until(lambda path=path: path.exists() and path.read_text().count("\n") == 7)
        assert path.read_text().splitlines() == [str(tmp_path), *words]


def test_a_failed_window_stays_and_a_clean_one_goes(session, tmp_path):
    session.start([("good", ["true"]), ("bad", ["bash", "-c", "exit 3"])], cwd=tmp_path)
    wait_until(lambda: session.windows() == [WindowState("bad", 3)])
    assert session.exists()
    session.kill()
    assert not session.exists()
    assert session.windows() == []


def test_the_session_goes_with_its_last_window(session, tmp_path):
    session.start([(f"w{i}", ["true"]) for i in range(5)], cwd=tmp_path)
    wait_until(lambda: not session.exists())


def test_ctrl_c_reaches_one_window(session, tmp_path):
    session.start([("one", ["sleep", "60"]), ("two", ["sleep", "60"])], cwd=tmp_path)
    # A command that is only just starting may not be in the foreground yet.
    wait_until(lambda: session.press("one", "C-c") or session.windows()[0].exit_code is not None)
    assert session.windows()[1] == WindowState("two", None)


def test_an_existing_session_is_left_alone(session, tmp_path):
    session.start([("one", ["sleep", "60"])], cwd=tmp_path)
    with pytest.raises(
        UserError, match=r"'run' exists already.*attach -t run.*kill-session -t run"
    ):
        session.start([("other", ["sleep", "60"])], cwd=tmp_path)
    assert session.windows() == [WindowState("one", None)]


def test_a_name_is_taken_whole(session, socket_name, tmp_path):
    session.start([("one", ["sleep", "60"])], cwd=tmp_path)
    shorter = Session("ru", socket_name)
    assert not shorter.exists()
    shorter.kill()
    assert session.exists()


def test_nothing_is_left_when_a_window_cannot_start(session, socket_name, tmp_path):
    Session("other", socket_name).start([("x", ["sleep", "60"])], cwd=tmp_path)
    too_long = ["echo", "x" * 100_000]
    with pytest.raises(UserError, match=r"tmux could not do 'respawn-pane'.*'run'"):
        session.start([("one", ["sleep", "60"]), ("two", too_long)], cwd=tmp_path)
    assert not session.exists()
    assert Session("other", socket_name).exists()


@pytest.mark.parametrize("name", ["", "a.b", "a:b", "=a", "-a", "a\nb"])
def test_what_cannot_be_a_name(name):
    with pytest.raises(UserError, match="cannot name a tmux session"):
        Session(name)


def test_tmux_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(os.environ, "PATH", "/nowhere")
    with pytest.raises(UserError, match="not installed: 'apt-get install tmux'"):
        Session("run")


def test_a_command_that_a_signal_ended_is_told_from_one_that_runs(session, tmp_path):
    session.start([("killed", ["bash", "-c", "kill -9 $$"]), ("runs", ["sleep", "60"])], tmp_path)
    deadline = time.monotonic() + 10
    while {w.name: w.exit_code for w in session.windows()} != {"killed": 137, "runs": None}:
        assert time.monotonic() < deadline, session.windows()
        time.sleep(0.05)
