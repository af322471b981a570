"""The supervisor's own words and looks; runs that are hurt are in test_run and test_cluster."""

import dataclasses
import socket
import threading

import pytest

from frontend import run_plan
from frontend.flags import Options
from frontend.watch import supervise
from frontend.workers import read as read_workers
from impala_torch.flags.config import Config


@pytest.fixture
def plan(tmp_path, monkeypatch, free_port):
    """Of a learner and two actors here, in a home of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = ["job,ip,tf_port", f"learner,localhost,{free_port()}"]
    rows += [f"actor,localhost,{9001 + task}" for task in range(2)]
    path = tmp_path / "workers.csv"
    path.write_text("\n".join(rows) + "\n")
    options = Options(workers_csv_path=str(path), start_timeout=1.0)
    config = Config(logdir=str(tmp_path / "run"), stall_secs=1.0)
    return run_plan.plan(read_workers(str(path)), config, options, "20260101-000000-abcd")


def test_what_fails_in_a_look_is_told_once_and_the_next_look_comes(plan, monkeypatch, capfd):
    monkeypatch.setattr(supervise, "_WATCH_SECS", 0.01)
    looks = threading.Semaphore(0)

    def look(self, hosts, tried):
        looks.release()
        raise ValueError("no such thing")

    monkeypatch.setattr(supervise.Supervisor, "_look_around", look)
    one = supervise.Supervisor(plan)
    watcher = threading.Thread(target=one._watch, daemon=True)
    watcher.start()
    for _ in range(3):
        assert looks.acquire(timeout=10)
    one._ended.set()
    watcher.join(10)
    assert not watcher.is_alive()
    said = capfd.readouterr().out
    assert said.count("cannot look after the run: ValueError: no such thing") == 1


@pytest.mark.parametrize(
    ("codes", "starts"),
    [([2], 1), ([1, 2, 2, 0], 4), ([0], 1), ([4], 1), ([1, 4], 2), ([1, 2, 2, 2, 2], 4)],
)
def test_a_mistake_is_one_at_the_first_start_and_passes_at_others(plan, monkeypatch, codes, starts):
    """A full disk or a directory that is still locked are told as mistakes too."""
    options = dataclasses.replace(plan.options, max_restarts=3)
    one = supervise.Supervisor(dataclasses.replace(plan, options=options))
    made = []

    def run_once():
        one._answered.set()
        made.append(codes[len(made)])
        return made[-1]

    monkeypatch.setattr(one, "_run_once", run_once)
    monkeypatch.setattr(one._stopping, "wait", lambda secs: False)
    assert one._run_learners() == codes[starts - 1]
    assert len(made) == starts


def test_from_where_learners_go_on_is_said(plan, tmp_path):
    one = supervise.Supervisor(plan)
    assert one._from_where() == "from the beginning, since no checkpoint was written yet,"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-100.pt").touch()
    assert one._from_where() == "from the newest checkpoint"
    here = dataclasses.replace(plan.here, learners=())
    away = dataclasses.replace(plan, hosts=(here, *plan.hosts[1:]))
    assert "or from the beginning if none" in supervise.Supervisor(away)._from_where()


def test_a_port_that_refuses_is_told_from_one_that_is_frozen(free_port, tmp_path):
    path = tmp_path / "endpoint"
    assert supervise._refuses(f"ipc://{path}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert supervise._refuses(f"ipc://{path}")
        server.listen()
        assert not supervise._refuses(f"ipc://{path}")
    assert supervise._refuses(f"ipc://{path}")  # its process has ended, the file is still there
    assert supervise._refuses(f"127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as server:  # which accepts nothing itself
        assert not supervise._refuses(f"127.0.0.1:{server.getsockname()[1]}")
    assert not supervise._refuses("no-such-host.invalid:80")


def test_only_an_actor_that_was_seen_to_run_for_long_hangs(plan, monkeypatch, capfd):
    windows = {}
    monkeypatch.setattr(supervise.run, "look", lambda *_: windows)
    one = supervise.Supervisor(plan)
    names = ["actor-0-0", "actor-0-1"]

    def window(code=None, restarts=0):
        return {"exit_code": code, "restarts": restarts}

    def later(secs):
        for name, (since, restarts) in one._running.items():
            one._running[name] = (since - secs, restarts)

    assert one._hung_secs() == supervise._HUNG_SECS > plan.options.start_timeout
    slow = dataclasses.replace(plan.options, start_timeout=600.0)
    assert supervise.Supervisor(dataclasses.replace(plan, options=slow))._hung_secs() == 600
    with plan.open_hosts() as hosts:
        windows |= {"actor-0-0": window(), "actor-0-1": window(restarts=1)}
        assert one._find_hung(hosts, names) == []
        later(one._hung_secs() - 1)
        assert one._find_hung(hosts, names) == []
        later(2)
        windows["actor-0-1"] = window(restarts=2)  # it ends by itself, and is started again
        assert one._find_hung(hosts, names) == ["actor-0-0"]
        assert one._find_hung(hosts, names) == []  # the new one has its time
        windows["actor-0-0"] = window(code=1)
        later(one._hung_secs() + 1)
        assert one._find_hung(hosts, names) == ["actor-0-1"]
        windows["actor-0-0"] = {**window(code=6), "tail": ["x", "exit code 7; given up: why"]}
        for _ in range(3):
            one._find_hung(hosts, names)
    said = capfd.readouterr().out
    assert said.count("actor-0-0: exit code 7; given up: why; its log: --action=logs") == 1
