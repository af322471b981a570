"""The relay of an actor host: real processes between real clients and a real endpoint."""

import signal
import sys
import threading
import time

import numpy as np
import pytest
import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.client import EndpointClient, Refused, RunEnded, ask_status
from impala_torch.flags.checks import check
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.structures import Unroll
from tests.conftest import random_unroll
from tests.endpoint.test_endpoint import BAD, Learner, push, receive
from tests.test_experiment import CARTPOLE, has_frames

RELAY = "impala_torch.endpoint.relay"
SET = 3  # of test_endpoint's Learner


class Host:
    """An actor host: its relay, a learner with keys, and clients that go through the relay."""

    def __init__(self, tmp_path, port, start):
        self.key_file = str(tmp_path / "run.key")
        curve.make(self.key_file)
        self.keys = curve.load(self.key_file)
        self.port = port
        self.folder = tmp_path / "sockets"
        self.socket = f"ipc://{self.folder}/set-{SET}.ipc"
        self.output = tmp_path / "relay.log"
        self._start = start
        self.learners, self.clients = [], []

    def relay(self, *flags):
        argv = [f"--key_file={self.key_file}", *flags, self.folder, f"{SET}=127.0.0.1:{self.port}"]
        with open(self.output, "ab") as output:
            process = self._start([sys.executable, "-m", RELAY, *argv], stderr=output)
        wait_until(lambda: (self.folder / f"set-{SET}.ipc").exists())
        return process

    def learner(self, **kwargs):
        self.learners.append(Learner(self.port, keys=self.keys, **kwargs))
        return self.learners[-1]

    def client(self, task=0, **kwargs):
        kwargs = {"timeout_secs": 20, "patience_secs": 2, **kwargs}
        spec = self.learners[0].spec
        address = f"127.0.0.1:{self.port}"
        client = EndpointClient(address, spec, task, 2, relay=self.socket, **kwargs)
        self.clients.append(client)
        return client

    def close(self):
        for client in self.clients:
            client.close()
        for learner in self.learners:
            if learner.server._thread.is_alive():
                learner.close()


@pytest.fixture
def host(tmp_path, free_port, start):
    made = Host(tmp_path, free_port(), start)
    yield made
    made.close()


def wait_until(condition, secs=15):
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def flat(value):
    return np.full(10, value, np.float32)


def die(learner):
    """Ends a learner without a word: nobody is told to stop."""
    learner.server._closing.set()
    learner.server._peers.clear()
    learner.close()


def pulled(client, version):
    """The version that a pull gives, and the first weight of it."""
    newer = client.pull(version)
    return None if newer is None else (newer[0], np.frombuffer(newer[1], np.float32)[0])


def test_many_actors_share_a_connection_and_each_versions_weights(host):
    learner = host.learner(batch=2, capacity=8)
    host.relay()
    clients = [host.client(task) for task in range(4)]
    for client in clients:
        assert client.connect() == (SET, "run", [["w", [10]]])
        assert pulled(client, -1) is None  # nothing published yet
    for version in (5, 6):
        learner.server.publish(version, flat(version))
        for client in clients:
            assert pulled(client, version - 1) == (version, version)
            assert pulled(client, version) is None
    status = ask_status(learner.address, host.keys)
    assert status["weights_sent"] == 2  # and not 8

    unrolls = [random_unroll(learner.spec, 2, np.random.default_rng(seed)) for seed in range(4)]
    for client, unroll in zip(clients, unrolls, strict=True):
        push(client, learner.spec, unroll)
        batch = learner.batches.get(5)
        for name, sent, got in zip(Unroll._fields, unroll, batch.arrays, strict=True):
            np.testing.assert_array_equal(got, sent, err_msg=name)
        learner.batches.recycle(batch)
    assert len({identity for identity, _ in learner.server._peers}) == 1
    actors = ask_status(learner.address, host.keys)["actors"]
    assert [actor["task"] for actor in actors] == [0, 1, 2, 3]
    assert all(actor["relayed"] and actor["key"] == "actor" for actor in actors)


def test_pulls_at_the_same_time_are_one_for_the_learner(host):
    learner = host.learner(actors=8)
    host.relay()
    clients = [host.client(task) for task in range(8)]
    for client in clients:
        client.connect()
    got = []

    def follow(client):
        version = -1
        while version < 30:
            newer = client.pull(version)
            if newer is not None:
                version = newer[0]
                got.append(np.frombuffer(newer[1], np.float32)[0] == version)

    threads = [threading.Thread(target=follow, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for version in range(31):
        learner.server.publish(version, flat(version))
        time.sleep(0.03)
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    assert all(got)
    assert learner.server.status()["weights_sent"] <= 31 < len(got)


def test_a_relay_started_again_is_survived(host):
    learner = host.learner()
    first = host.relay()
    clients = [host.client(task) for task in range(2)]
    for client in clients:
        client.connect()
    learner.server.publish(1, flat(1))
    assert [pulled(client, -1) for client in clients] == [(1, 1), (1, 1)]
    first.kill()  # leaves its socket's file behind
    first.wait()
    assert (host.folder / f"set-{SET}.ipc").exists()
    learner.server.publish(2, flat(2))
    host.relay()
    assert [pulled(client, 1) for client in clients] == [(2, 2), (2, 2)]
    for client in clients:
        push(client, learner.spec, random_unroll(learner.spec, 2, np.random.default_rng(0)))
        assert learner.batches.get(5) is not None


def test_a_restarted_learner_is_survived_and_its_weights_are_served(host):
    first = host.learner()
    host.relay()
    clients = [host.client(task) for task in range(3)]
    for client in clients:
        client.connect()
    first.server.publish(100, flat(1))
    assert [pulled(client, -1) for client in clients] == [(100, 1)] * 3
    die(first)
    second = host.learner()
    second.server.publish(90, flat(2))
    assert [pulled(client, 100) for client in clients[:2]] == [(90, 2)] * 2
    # The same version as of the weights that the relay had, and others.
    second.server.publish(100, flat(3))
    assert pulled(clients[0], 90) == (100, 3)
    # The third asks for the first time since, with a version of the old learner's.
    second.server.publish(101, flat(4))
    assert pulled(clients[2], 100) == (101, 4)
    for client in clients:
        push(client, second.spec, random_unroll(second.spec, 2, np.random.default_rng(0)))
        assert second.batches.get(5) is not None


def test_weights_of_the_same_version_from_another_learner_are_not_confirmed(host):
    first = host.learner()
    host.relay()
    client = host.client()
    client.connect()
    first.server.publish(7, flat(1))
    assert pulled(client, -1) == (7, 1)
    die(first)
    second = host.learner()
    second.server.publish(7, flat(2))
    other = host.client(1)
    other.connect()
    assert pulled(other, -1) == (7, 2)


def test_a_bad_message_costs_one_actor_and_not_its_neighbours(host):
    learner = host.learner()
    host.relay()
    good, bad = host.client(0), host.client(1)
    good.connect()
    bad.connect()
    bad._send([b"\xc1\xff"])
    with pytest.raises(Refused, match="bad message"):
        bad.pull(-1)
    learner.server.publish(1, flat(1))
    assert pulled(good, -1) == (1, 1)
    again = host.client(1)
    again.connect()
    assert pulled(again, -1) == (1, 1)
    again._ask(lambda: [messages.encode("ready")], "credit")
    again._send(BAD["block is damaged"](learner.spec))  # seen by the assembling thread
    wait_until(lambda: learner.server.bad_messages == 2)
    push(good, learner.spec, random_unroll(learner.spec, 2, np.random.default_rng(0)))
    assert learner.batches.get(5) is not None


@pytest.mark.slow
def test_a_pull_in_the_name_of_a_banned_actor_is_asked_again_in_anothers(host):
    learner = host.learner()
    host.relay()
    good, bad = host.client(0, patience_secs=15), host.client(1)
    good.connect()
    bad.connect()
    learner.server.publish(1, flat(1))
    bad._send([b"\xc1\xff"])
    with pytest.raises(Refused):
        bad.pull(-1)
    bad._send([messages.encode("pull", version=-1)])  # nobody listens to it any more
    time.sleep(0.2)
    started = time.monotonic()
    assert pulled(good, -1) == (1, 1)
    assert time.monotonic() - started < 8


def test_a_relay_serves_several_worker_sets_until_all_have_stopped(tmp_path, free_port, start):
    learners = [Learner(free_port()) for _ in range(2)]
    sets = [f"{number}={learner.address}" for number, learner in enumerate(learners)]
    argv = [sys.executable, "-m", RELAY, "--linger=0.3", tmp_path / "r", *sets]
    relay = start(argv)
    clients = []
    for number, learner in enumerate(learners):
        learner.server.publish(number, flat(number))
        socket = f"ipc://{tmp_path}/r/set-{number}.ipc"
        clients.append(EndpointClient(learner.address, learner.spec, 0, 2, relay=socket))
        clients[-1].connect()
        assert pulled(clients[-1], -1) == (number, number)
    learners[0].close()
    with pytest.raises(RunEnded):
        clients[0].pull(0)
    time.sleep(1)
    assert relay.poll() is None
    learners[1].server.publish(5, flat(5))
    assert pulled(clients[1], 1) == (5, 5)
    learners[1].close()
    assert relay.wait(10) == 0
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    "parts",
    [[b""], [b"", b"actor"], [b"", b"", b"x"], [b"", b"i" * 65, b"x"]],
    ids=["nothing", "no header", "no id", "long id"],
)
def test_a_bad_wrapping_costs_the_connection(free_port, parts):
    learner = Learner(free_port())
    context = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.linger = 0
    sock.connect(f"tcp://{learner.address}")
    try:
        sock.send_multipart(parts)
        assert "bad message" in receive(sock)["reason"]
        sock.send_multipart([b"", b"actor", messages.encode("status")])
        assert not sock.poll(200)
    finally:
        sock.close()
        context.term()
        learner.close()


def test_stop_reaches_the_actors_and_ends_the_relay(host):
    learner = host.learner(actors=2)
    relay = host.relay("--linger=1.5")
    busy, waiting = host.client(0), host.client(1)
    busy.connect()
    waiting.connect()
    learner.close()
    for client in (busy, waiting):
        with pytest.raises(RunEnded):
            client.pull(-1)
    late = host.client(1)  # the learner is gone: the relay tells it
    with pytest.raises(RunEnded):
        late.connect()
    assert relay.wait(10) == 0
    assert list(host.folder.iterdir()) == []
    assert "the run has ended" in host.output.read_text()


@pytest.mark.slow
def test_a_learner_and_actors_that_hold_no_key(host, start, tmp_path):
    flags = [*CARTPOLE, f"--learner_host=127.0.0.1:{host.port}", "--actor_hosts=h:1,h:2"]
    learning = [f"--key_file={host.key_file}", f"--logdir={tmp_path / 'run'}", "--task=0"]
    learner = start([sys.executable, "experiment.py", *flags, *learning])
    relay = host.relay("--linger=1")
    acting = ["--job_name=actor", f"--relay={host.socket}"]
    actors = [
        start([sys.executable, "experiment.py", *flags, *acting, f"--task={task}"])
        for task in range(2)
    ]
    wait_until(lambda: has_frames(tmp_path / "run"), secs=60)

    def relayed():
        status = ask_status(f"127.0.0.1:{host.port}", host.keys) or {"actors": []}
        return [actor["relayed"] for actor in status["actors"]]

    wait_until(lambda: len(relayed()) == 2, secs=60)
    assert relayed() == [True, True]
    learner.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in (learner, *actors, relay)] == [0, 0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_at_once(host, number):
    relay = host.relay()
    relay.send_signal(number)
    assert relay.wait(30) == 0
    assert list(host.folder.iterdir()) == []


def test_it_gives_up_when_no_learner_is_heard(host):
    relay = host.relay("--learner_timeout=0.5")
    assert relay.wait(10) == 3
    assert "no learner was heard" in host.output.read_text()


def test_its_directory_is_private_and_another_relay_is_left_alone(host, run_python):
    host.relay()
    assert host.folder.stat().st_mode & 0o777 == 0o700
    argv = ["-m", RELAY, host.folder, f"{SET}=127.0.0.1:{host.port}"]
    done = run_python(*argv)
    assert done.returncode == 2
    assert "another relay serves" in done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "required: DIR, SET=ip:port"),
        (["{dir}"], "required: SET=ip:port"),
        (["{dir}", "127.0.0.1:8001"], "not of the form SET=ip:port"),
        (["{dir}", "0=127.0.0.1"], "worker set 0: '127.0.0.1' is not of the form ip:port"),
        (["{dir}", "0=127.0.0.1:1", "0=127.0.0.1:2"], "worker set 0 is named twice"),
        (["{dir}", "0=10.1.2.3:8001"], "needs --key_file"),
        (["--key_file={dir}/none", "{dir}", "0=10.1.2.3:8001"], "cannot be read"),
        (["--learner_timeout=-1", "{dir}", "0=127.0.0.1:1"], "not a number of seconds"),
        (["{dir}/" + "d" * 100, "0=127.0.0.1:1"], "may have 100 bytes"),
        (["/proc/none", "0=127.0.0.1:1"], "cannot be made"),
        (["/tmp", "0=127.0.0.1:1"], "others can write"),
        (["--port=1", "{dir}", "0=127.0.0.1:1"], "unrecognized arguments: --port=1"),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(tmp_path, capsys, monkeypatch, argv, said):
    from impala_torch.endpoint import relay

    monkeypatch.setattr("os.umask", lambda mask: None)
    assert relay.main([word.format(dir=tmp_path) for word in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    ("relay", "said"),
    [
        ("tcp://127.0.0.1:1", "--relay must be ipc://"),
        ("ipc://", "--relay must be ipc://"),
        ("ipc:///" + "d" * 100, "may have 100 bytes"),
    ],
)
def test_the_flag_must_be_an_address_of_this_host(relay, said):
    with pytest.raises(UserError, match=said):
        check(Config(relay=relay))
    check(Config(relay="ipc:///run/set-0.ipc"))


def test_a_learners_address_may_be_of_this_host_too():
    check(Config(learner_host="ipc:///run/learner.ipc"))
    for address, said in (("ipc://", "ipc:// and a path"), ("ipc:///" + "d" * 100, "100 bytes")):
        with pytest.raises(UserError, match=f"--learner_host.*{said}"):
            check(Config(learner_host=address))
