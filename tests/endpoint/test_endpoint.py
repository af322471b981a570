"""The parameter endpoint over real sockets: hello, weights, unrolls, credit, bad messages, keys."""

import dataclasses
import os
import socket
import threading
import time
import types

import msgpack
import numpy as np
import pytest
import torch
import zmq
import zstandard

from impala_torch.acting.seeds import seeds_of
from impala_torch.endpoint import client as client_module
from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.batches import BatchQueue
from impala_torch.endpoint.client import (
    Banned,
    EndpointClient,
    LearnerGone,
    Refused,
    RunEnded,
    ask_status,
)
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.messages import BadMessage
from impala_torch.endpoint.peers import Peer, Window
from impala_torch.endpoint.server import EndpointServer
from impala_torch.flags.errors import UserError
from impala_torch.structures import EpisodeResult, Unroll
from tests.conftest import make_batch, random_unroll, small_spec

LAYOUT = [["w", [10]]]


class Learner:
    """A learner's endpoint and queue, without a learner."""

    def __init__(
        self,
        port,
        *,
        spec=None,
        batch=2,
        capacity=2,
        keys=None,
        actors=4,
        max_lag=0,
        address="",
        **flags,
    ):
        self.spec = spec or small_spec()
        self.address = address or f"127.0.0.1:{port}"
        self.batches = BatchQueue(
            self.spec, batch, capacity, lambda: make_batch(self.spec, batch), max_lag
        )
        self.server = EndpointServer(
            self.address,
            self.spec,
            LAYOUT,
            self.batches,
            num_actors=actors,
            worker_set=3,
            run_id="run",
            keys=keys,
            **flags,
        )

    def close(self):
        self.server._num_actors = 0  # nobody is waited for
        self.server.close(grace_secs=0.1)
        self.batches.close()


@pytest.fixture
def serve(free_port):
    learners = []

    def make(**kwargs):
        learners.append(Learner(kwargs.pop("port", None) or free_port(), **kwargs))
        return learners[-1]

    yield make
    for learner in learners:
        if learner.server._thread.is_alive():
            learner.close()


@pytest.fixture
def client_of():
    clients = []

    def make(learner, task=0, num_envs=2, spec=None, **kwargs):
        kwargs = {"timeout_secs": 10, "patience_secs": 3, **kwargs}
        clients.append(
            EndpointClient(learner.address, spec or learner.spec, task, num_envs, **kwargs)
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def push(client, spec, unroll, episodes=()):
    client.push(UnrollCodec(spec).encode(unroll), messages.encode_episodes(episodes))


def test_weights_and_unrolls_arrive_as_they_were_sent(serve, client_of):
    learner = serve()
    client = client_of(learner)
    welcome = client.connect()
    assert welcome == (3, "run", LAYOUT, 0)
    assert client.pull(-1) is None  # nothing published yet
    flat = np.arange(10, dtype=np.float32)
    learner.server.publish(5, flat)
    version, data = client.pull(-1)
    assert version == 5
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), flat)
    assert client.pull(5) is None

    unroll = random_unroll(learner.spec, 2, np.random.default_rng(0))
    unroll.weights_version[:] = 5
    results = [EpisodeResult(1.5, 40, None, None), EpisodeResult(2.0, 44, 3.5, 84)]
    push(client, learner.spec, unroll, results)
    batch = learner.batches.get(5)
    for name, sent, got in zip(Unroll._fields, unroll, batch.arrays, strict=True):
        np.testing.assert_array_equal(got, sent, err_msg=name)
        assert torch.equal(getattr(batch.tensors, name), torch.from_numpy(sent)), name
    assert learner.server.take_episodes() == [(5, result) for result in results]
    assert learner.server.take_episodes() == []


def test_each_process_of_a_task_gets_another_start(serve, client_of, monkeypatch):
    """So one that is started again does not play the same games again."""
    learner = serve(frames=1000)
    first = client_of(learner)
    assert first.connect().start == 1000
    assert first.connect().start == 1000  # the same process, over another connection
    assert client_of(learner, task=1).connect().start == 1000
    monkeypatch.setattr(client_module, "os", types.SimpleNamespace(getpid=lambda: 1))
    assert client_of(learner).connect().start == 1001
    assert len({seeds_of(1, 0, 0, start) for start in (0, 1000, 1001)}) == 3


def test_start_order_does_not_matter(serve, client_of, free_port):
    port = free_port()

    class Address:
        address = f"127.0.0.1:{port}"
        spec = small_spec()

    client = client_of(Address)
    welcomes = []
    thread = threading.Thread(target=lambda: welcomes.append(client.connect()))
    thread.start()
    time.sleep(0.5)
    serve(port=port)
    thread.join(20)
    assert welcomes


def test_an_actor_goes_on_with_a_restarted_learner(serve, client_of, free_port):
    port = free_port()
    first = serve(port=port)
    client = client_of(first, patience_secs=1)
    client.connect()
    first.server._closing.set()  # dies without a word: nobody is told to stop
    first.server._peers.clear()
    first.close()
    second = serve(port=port)
    second.server.publish(7, np.zeros(10, np.float32))
    assert client.pull(3)[0] == 7
    push(client, second.spec, random_unroll(second.spec, 2, np.random.default_rng(1)))
    assert second.batches.get(5) is not None


def test_an_actor_gives_up_after_its_timeout(client_of, free_port):
    class Nobody:
        address = f"127.0.0.1:{free_port()}"
        spec = small_spec()

    client = client_of(Nobody, timeout_secs=0.5, patience_secs=0.3)
    with pytest.raises(LearnerGone, match="no learner answered"):
        client.connect()


def test_stop_reaches_actors_busy_or_waiting(serve, client_of):
    learner = serve(capacity=1)
    waiting, busy = client_of(learner, 0), client_of(learner, 1)
    waiting.connect()
    busy.connect()
    unroll = random_unroll(learner.spec, 2, np.random.default_rng(2))
    push(waiting, learner.spec, unroll)
    ended = []

    def wait_for_credit():
        try:
            push(waiting, learner.spec, unroll)
        except RunEnded:
            ended.append(True)

    thread = threading.Thread(target=wait_for_credit)
    thread.start()
    time.sleep(0.3)
    learner.close()
    thread.join(10)
    assert ended
    with pytest.raises(RunEnded):
        busy.pull(0)


def test_an_actor_that_comes_when_the_run_has_ended_is_told(serve, client_of):
    learner = serve(actors=1)
    closing = threading.Thread(target=learner.server.close, args=(0.1,))
    closing.start()
    time.sleep(0.5)  # past the grace: it is waited for all the same
    with pytest.raises(RunEnded):
        client_of(learner).connect()
    closing.join(5)
    assert not closing.is_alive()  # and then nobody else is
    learner.batches.close()


def test_memory_is_bounded_whatever_the_number_of_actors(serve, client_of):
    learner = serve(batch=2, capacity=3, actors=12)
    capacity = 2 * 3
    sent = []
    lock = threading.Lock()

    def flood(client):
        unroll = random_unroll(learner.spec, 1, np.random.default_rng(3))
        try:
            while True:
                push(client, learner.spec, unroll)
                with lock:
                    sent.append(1)
        except RunEnded:
            pass

    threads = []
    for task in range(12):
        client = client_of(learner, task, num_envs=1)
        client.connect()
        threads.append(threading.Thread(target=flood, args=(client,)))
        threads[-1].start()
    deadline = time.monotonic() + 10
    while len(sent) < capacity and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    assert len(sent) == capacity  # and not one more, though twelve want to
    for _ in range(3):
        learner.batches.recycle(learner.batches.get(5))
    deadline = time.monotonic() + 10
    while len(sent) < 2 * capacity and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(sent) == 2 * capacity
    learner.close()
    for thread in threads:
        thread.join(10)


@pytest.mark.parametrize(("batch", "num_envs"), [(2, 3), (2, 16), (5, 2), (3, 3)])
def test_no_combination_of_sizes_starves(serve, client_of, batch, num_envs):
    learner = serve(batch=batch, capacity=1)
    client = client_of(learner, num_envs=num_envs)
    client.connect()
    rng = np.random.default_rng(4)
    total = 4 * batch * num_envs
    unrolls = [random_unroll(learner.spec, num_envs, rng) for _ in range(total // num_envs)]

    def send():
        for unroll in unrolls:
            push(client, learner.spec, unroll)

    thread = threading.Thread(target=send)
    thread.start()
    rewards = []
    for _ in range(total // batch):
        got = learner.batches.get(10)
        assert got is not None
        rewards.append(got.arrays.reward.copy())
        learner.batches.recycle(got)
    thread.join(10)
    np.testing.assert_array_equal(
        np.concatenate(rewards, axis=1), np.concatenate([u.reward for u in unrolls], axis=1)
    )


def test_room_that_a_dead_actor_holds_comes_back(serve, client_of, monkeypatch):
    monkeypatch.setattr("impala_torch.endpoint.peers.CREDIT_SECS", 0.5)
    learner = serve(batch=2, capacity=1)
    dead = client_of(learner, 0, num_envs=2)
    dead.connect()
    dead._ask(lambda: [messages.encode("ready")], "credit")  # and never sends
    alive = client_of(learner, 1, num_envs=2)
    alive.connect()
    push(alive, learner.spec, random_unroll(learner.spec, 2, np.random.default_rng(5)))
    assert learner.batches.get(5) is not None


def test_a_restarted_actor_takes_its_tasks_place(serve, client_of):
    learner = serve()
    first = client_of(learner, task=1)
    first.connect()
    second = client_of(learner, task=1)
    second.connect()
    with pytest.raises(Refused, match=r"took the place of --task=1"):
        first.pull(0)
    assert second.pull(0) is None
    assert [actor["task"] for actor in learner.server.status()["actors"]] == [1]
    assert learner.server.missing_tasks() == [0, 2, 3]


def test_old_unrolls_are_dropped_when_asked(serve, client_of):
    learner = serve(max_lag=3)
    client = client_of(learner)
    client.connect()
    learner.server.publish(10, np.zeros(10, np.float32))
    rng = np.random.default_rng(6)
    for version in (6, 7):
        unroll = random_unroll(learner.spec, 2, rng)
        unroll.weights_version[:] = version
        push(client, learner.spec, unroll)
    batch = learner.batches.get(5)
    assert batch.arrays.weights_version.tolist() == [7, 7]
    assert learner.batches.dropped == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unroll_length": 8}, r"unroll_length is 8, the learner's 7"),
        ({"num_actions": 9}, r"num_actions is 9"),
        ({"level_name": "Pong-v0"}, r"level_name is 'Pong-v0', the learner's 'Level-v0'"),
        ({"num_action_repeats": 1}, r"num_action_repeats is 1, the learner's 4"),
        ({"episodic_life": False}, r"episodic_life is False, the learner's True"),
        ({"width": 60}, r"width is 60, the learner's 84"),
        ({"shape": (5, 5)}, r"observation"),
    ],
)
def test_another_specification_is_refused_in_words(serve, client_of, change, said):
    learner = serve()
    client = client_of(learner, spec=small_spec(**change))
    with pytest.raises(Refused, match=said):
        client.connect()


def test_a_task_outside_actor_hosts_is_refused(serve, client_of):
    learner = serve(actors=2)
    with pytest.raises(Refused, match=r"--task=2 is outside the learner's --actor_hosts"):
        client_of(learner, task=2).connect()


def test_status_tells_who_is_there(serve, client_of):
    learner = serve()
    learner.server.learner_status = {"frames": 12}
    client = client_of(learner, task=2)
    client.connect()
    push(client, learner.spec, random_unroll(learner.spec, 2, np.random.default_rng(7)))
    assert learner.batches.get(5)
    status = ask_status(learner.address)
    assert status["frames"] == 12
    (actor,) = status["actors"]
    assert (actor["task"], actor["num_envs"], actor["steps"]) == (2, 2, 14)
    assert (status["host"], status["pid"]) == (socket.gethostname(), os.getpid())
    assert status["num_actors"] == 4
    assert status["bytes_per_sec"] > 0


def test_status_tells_how_old_the_weights_were_that_an_actor_acted_with(serve, client_of):
    learner = serve()
    client = client_of(learner)
    client.connect()

    def actor():
        (status,) = ask_status(learner.address)["actors"]
        return status["lag"], status["weights_age_secs"]

    assert actor() == (None, None)
    learner.server.publish(7, np.zeros(10, np.float32))
    time.sleep(0.3)
    learner.server.publish(9, np.zeros(10, np.float32))
    unroll = random_unroll(learner.spec, 2, np.random.default_rng(7))
    for version, lag in ((7, 2), (9, 0)):
        unroll.weights_version[:] = version
        push(client, learner.spec, unroll)
        learner.batches.recycle(learner.batches.get(5))
        got, age = actor()
        assert got == lag
        assert age >= 0.3 if lag else age < 0.3
    unroll.weights_version[:] = 8  # never published here
    push(client, learner.spec, unroll)
    assert learner.batches.get(5)
    assert actor() == (1, None)
    assert ask_status(learner.address)["weights_sent"] == 0
    client.pull(-1)
    assert ask_status(learner.address)["weights_sent"] == 1


def test_the_times_of_publishing_are_forgotten_in_time(serve, monkeypatch):
    monkeypatch.setattr("impala_torch.endpoint.server.MAX_PUBLISHED", 3)
    learner = serve()
    for version in range(10):
        learner.server.publish(version, np.zeros(10, np.float32))
    assert list(learner.server._published) == [7, 8, 9]


def test_status_tells_how_much_an_actor_waits(serve, client_of):
    learner = serve(capacity=1)
    client = client_of(learner)
    client.connect()
    unroll = random_unroll(learner.spec, 2, np.random.default_rng(7))
    push(client, learner.spec, unroll)
    time.sleep(0.5)  # acts
    busy = ask_status(learner.address)["actors"][0]
    assert busy["waiting_share"] < 0.3
    thread = threading.Thread(target=push, args=(client, learner.spec, unroll))
    thread.start()  # the queue is full
    time.sleep(1.5)
    waiting = ask_status(learner.address)["actors"][0]
    assert waiting["state"] == "waiting"
    assert waiting["waiting_share"] > 0.6  # though it has not told it yet
    assert learner.batches.get(5)
    thread.join(10)
    assert learner.batches.get(5)
    told = ask_status(learner.address)["actors"][0]
    assert told["state"] == "acting"
    assert 0.6 < told["waiting_share"] <= 1


def test_figures_per_second_are_of_the_last_seconds(monkeypatch):
    now = 1000.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("impala_torch.endpoint.peers.time", clock)
    window = Window(50)
    for _ in range(100):
        now += 1
        window.add(50 + 2 * (now - 1000))
    assert window.rates(250) == [2.0]
    now += 85  # nothing more came
    assert window.rates(250)[0] == pytest.approx(30 / 100)


def test_an_actor_that_comes_back_keeps_its_counts_and_has_no_burst(serve, client_of):
    learner = serve()
    first = client_of(learner)
    first.connect()
    push(first, learner.spec, random_unroll(learner.spec, 2, np.random.default_rng(7)))
    assert learner.batches.get(5)
    client_of(learner).connect()
    (actor,) = learner.server.status()["actors"]
    assert actor["steps"] == 14
    assert actor["steps_per_sec"] == 0


def test_status_names_the_key_that_an_actor_came_with(serve, client_of, tmp_path):
    content, others = curve.make_for_run(["host-a"])
    curve.write(str(tmp_path / "learner.key"), content)
    curve.write(str(tmp_path / "actor.key"), others["host-a"])
    learner = serve(keys=curve.load(str(tmp_path / "learner.key")))
    client_of(learner, keys=curve.load(str(tmp_path / "actor.key"))).connect()
    (actor,) = learner.server.status()["actors"]
    assert (actor["key"], actor["relayed"]) == ("host-a", False)
    open_one = serve()
    client_of(open_one).connect()
    (actor,) = open_one.server.status()["actors"]
    assert (actor["key"], actor["relayed"]) == ("", False)


# --- bad messages -----------------------------------------------------------------------------


def raw_actor(learner, task=0, num_envs=2):
    """A socket that said hello and holds a credit, ready to misbehave."""
    sock = zmq.Context.instance().socket(zmq.DEALER)
    sock.linger = 0
    sock.connect(f"tcp://{learner.address}")
    sock.send(
        messages.encode(
            "hello",
            protocol=messages.PROTOCOL,
            spec=learner.spec.to_header(),
            task=task,
            num_envs=num_envs,
            host="h",
            pid=1,
        )
    )
    assert receive(sock)["type"] == "welcome"
    sock.send(messages.encode("ready"))
    assert receive(sock)["type"] == "credit"
    return sock


def receive(sock):
    assert sock.poll(5000), "no answer"
    return msgpack.unpackb(sock.recv_multipart()[0])


def good_parts(spec):
    unroll = random_unroll(spec, 2, np.random.default_rng(8))
    return [messages.encode("unroll", episodes=[]), *UnrollCodec(spec).encode(unroll)]


def spoiled(spec, **fields):
    unroll = random_unroll(spec, 2, np.random.default_rng(8))
    for name, value in fields.items():
        getattr(unroll, name).ravel()[1] = value
    return [messages.encode("unroll", episodes=[]), *UnrollCodec(spec).encode(unroll)]


def bad_done(spec):
    parts = good_parts(spec)
    fields = bytearray(zstandard.ZstdDecompressor().decompress(parts[1]))
    fields[4 * 2 * (spec.unroll_length + 1)] = 7  # the first done comes after the rewards
    return [parts[0], zstandard.ZstdCompressor().compress(bytes(fields)), *parts[2:]]


BAD = {
    "not msgpack": lambda s: [b"\xc1\xff\x00"],
    "not a map": lambda s: [msgpack.packb([1, 2])],
    "no type": lambda s: [msgpack.packb({"a": 1})],
    "unknown type": lambda s: [messages.encode("launch")],
    "huge header": lambda s: [b"\x00" * (messages.MAX_HEADER_BYTES + 1)],
    "deep header": lambda s: [b"\x91" * 5000],
    "pickle": lambda s: [b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94"],
    "empty": lambda s: [b""],
    "version not a number": lambda s: [messages.encode("pull", version="1")],
    "no buffers": lambda s: good_parts(s)[:1],
    "one block too few": lambda s: good_parts(s)[:-1],
    "one block too many": lambda s: [*good_parts(s), b"x"],
    "fields too short": lambda s: [good_parts(s)[0], good_parts(s)[1][:-1], *good_parts(s)[2:]],
    "fields too long": lambda s: [good_parts(s)[0], good_parts(s)[1] + b"0", *good_parts(s)[2:]],
    "action too large": lambda s: spoiled(s, action=4),
    "action negative": lambda s: spoiled(s, action=-1),
    "initial action too large": lambda s: spoiled(s, initial_action=99),
    "version of the future": lambda s: spoiled(s, weights_version=10**9),
    "reward not finite": lambda s: spoiled(s, reward=np.nan),
    "reward too large": lambda s: spoiled(s, reward=-1e13),
    "final value too large": lambda s: spoiled(s, final_value=1e16),
    "logits not finite": lambda s: spoiled(s, policy_logits=np.inf),
    "state not finite": lambda s: spoiled(s, agent_state=np.nan),
    "done neither 0 nor 1": bad_done,
    "block is noise": lambda s: [*good_parts(s)[:-1], b"\x00" * 99],
    "block is a bomb": lambda s: [
        *good_parts(s)[:-1],
        zstandard.ZstdCompressor().compress(b"\x00" * (1 << 24)),
    ],
    "fields are a bomb": lambda s: [
        good_parts(s)[0],
        zstandard.ZstdCompressor().compress(b"\x00" * (1 << 24)),
        *good_parts(s)[2:],
    ],
    "block is damaged": lambda s: [*good_parts(s)[:-1], good_parts(s)[-1][:-6] + b"abcdef"],
    "waited is text": lambda s: [
        messages.encode("unroll", episodes=[], waited="1"),
        *good_parts(s)[1:],
    ],
    "waited is negative": lambda s: [
        messages.encode("unroll", episodes=[], waited=-0.1),
        *good_parts(s)[1:],
    ],
    "waited is not finite": lambda s: [
        messages.encode("unroll", episodes=[], waited=float("nan")),
        *good_parts(s)[1:],
    ],
    "episodes not a list": lambda s: [
        messages.encode("unroll", episodes=3),
        *good_parts(s)[1:],
    ],
    "episode of words": lambda s: [
        messages.encode("unroll", episodes=[["a", 1, None, None]]),
        *good_parts(s)[1:],
    ],
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_costs_its_sender_the_connection_and_nothing_else(serve, client_of, name):
    learner = serve()
    bad = raw_actor(learner, task=0)
    try:
        bad.send_multipart(BAD[name](learner.spec))
        answer = receive(bad)
        assert answer["type"] == "refused", answer
        assert "bad message" in answer["reason"]
        bad.send(messages.encode("pull", version=0))
        assert not bad.poll(200)  # nobody listens to it any more
    finally:
        bad.close()
    assert learner.server.bad_messages == 1
    good = client_of(learner, task=0)
    good.connect()
    for seed in range(3):  # the room that the bad one held is free again
        unroll = random_unroll(learner.spec, 2, np.random.default_rng(seed))
        push(good, learner.spec, unroll)
        batch = learner.batches.get(5)
        assert batch is not None
        learner.batches.recycle(batch)


def test_an_unroll_without_credit_is_bad(serve):
    learner = serve()
    sock = raw_actor(learner)
    sock.send_multipart(good_parts(learner.spec))
    sock.send_multipart(good_parts(learner.spec))
    assert "without credit" in receive(sock)["reason"]
    sock.close()


def test_a_float_observation_that_is_not_finite_is_refused():
    spec = small_spec(shape=(3,), dtype="float32", stack=1)
    unroll = random_unroll(spec, 1, np.random.default_rng(0))
    unroll.observation[0] = np.nan
    codec = UnrollCodec(spec)
    decoded = codec.decode_fields(codec.encode(unroll), 1, 0)
    with pytest.raises(BadMessage, match="not finite"):
        codec.decode_column(decoded, 0, make_batch(spec, 1).arrays, 0)


# --- keys -------------------------------------------------------------------------------------


def test_with_keys_only_their_holders_get_in(serve, client_of, tmp_path):
    curve.make(str(tmp_path / "run.key"))
    curve.make(str(tmp_path / "other.key"))
    keys, other = (curve.load(str(tmp_path / name)) for name in ("run.key", "other.key"))
    learner = serve(keys=keys)
    client_of(learner, keys=keys).connect()
    pair = {"actor_public": other.actor_public, "actor_secret": other.actor_secret}
    impostor = dataclasses.replace(keys, **pair)
    for wrong in (None, other, impostor):
        client = client_of(learner, task=1, keys=wrong, timeout_secs=0.5, patience_secs=0.5)
        with pytest.raises(LearnerGone):
            client.connect()
        assert ask_status(learner.address, wrong, timeout_secs=0.5) is None
    assert ask_status(learner.address, keys)["denied_connections"] > 0


def test_key_files_are_private_and_checked(tmp_path):
    path = tmp_path / "run.key"
    curve.make(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "secret" not in repr(curve.load(str(path)))
    with pytest.raises(UserError, match="cannot make"):
        curve.make(str(path))
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        curve.load(str(path))
    bad = tmp_path / "bad.key"
    bad.write_text("{}")
    bad.chmod(0o600)
    with pytest.raises(UserError, match="not a key file"):
        curve.load(str(bad))
    with pytest.raises(UserError, match="cannot be read"):
        curve.load(str(tmp_path / "none.key"))


def test_only_loopback_may_stay_open():
    assert curve.for_address("localhost:8001", "") is None
    assert curve.for_address("127.0.0.1:8001", "") is None
    for address in ("10.1.2.3:8001", "0.0.0.0:8001"):
        with pytest.raises(UserError, match="needs --key_file"):
            curve.for_address(address, "")


def test_a_learner_that_finds_itself_elsewhere_says_so(free_port):
    learner = Learner(free_port())
    learner.close()
    with pytest.raises(UserError, match=r"no address of this host, .*the host that its row names"):
        EndpointServer(
            "198.51.100.9:8001", learner.spec, LAYOUT, learner.batches, num_actors=1, keys=None
        )


def test_a_taken_port_is_named(serve):
    learner = serve()
    with pytest.raises(UserError, match=learner.address):
        Learner(learner.address.split(":")[1])


def test_what_was_acted_for_a_learner_that_was_started_again_is_dropped(
    serve, client_of, free_port
):
    port = free_port()
    first = serve(port=port)
    client = client_of(first, patience_secs=1)
    client.connect()
    flat = np.zeros(10, np.float32)
    first.server.publish(500, flat)
    assert client.pull(-1)[0] == 500
    unroll = random_unroll(first.spec, 2, np.random.default_rng(1))
    unroll.weights_version[:] = 500
    first.server._closing.set()  # dies without a word: nobody is told to stop
    first.server._peers.clear()
    first.close()
    second = serve(port=port)  # from a checkpoint of 3 updates
    second.server.publish(3, flat)
    push(client, second.spec, unroll)
    assert client.pull(500)[0] == 3
    unroll.weights_version[:] = 3
    push(client, second.spec, unroll)
    assert client.pull(3) is None  # answered after the unroll was taken
    status = second.server.status()
    assert status["bad_messages"] == 0
    assert status["actors"][0]["steps"] == 2 * second.spec.unroll_length


# --- evaluators, who pull weights and are no actors --------------------------------------------

EVALUATOR = {"role": messages.EVALUATOR}


def test_an_evaluator_gets_weights_and_their_frames_and_counts_as_no_actor(serve, client_of):
    learner = serve(actors=1)
    actor, evaluator = client_of(learner), client_of(learner, num_envs=1, **EVALUATOR)
    actor.connect()
    evaluator.connect()
    learner.server.publish(5, np.arange(10, dtype=np.float32), 1200)
    version, data = evaluator.pull(-1)
    assert (version, evaluator.frames) == (5, 1200)
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), np.arange(10))
    learner.server.learner_status = {"frames": 1300}
    status = evaluator.status()
    assert status["frames"] == 1300
    # It has the actor's task and does not take its place.
    assert [one["num_envs"] for one in status["actors"]] == [2]
    assert learner.server.num_connected == 1
    push(actor, learner.spec, random_unroll(learner.spec, 2, np.random.default_rng(0)))
    assert learner.batches.get(5)


def test_an_evaluator_waits_for_no_actor_and_is_told_the_end(serve, client_of):
    learner = serve(actors=1)
    evaluator = client_of(learner, **EVALUATOR)
    evaluator.connect()
    assert learner.server.missing_tasks() == [0]
    learner.close()
    with pytest.raises(RunEnded):
        evaluator.status()


def test_an_evaluator_that_sends_unrolls_is_banned_and_no_actor_with_it(serve, client_of):
    learner = serve(actors=1)
    actor, evaluator = client_of(learner), client_of(learner, **EVALUATOR)
    actor.connect()
    evaluator.connect()
    unroll = random_unroll(learner.spec, 2, np.random.default_rng(0))
    with pytest.raises(Banned, match="'ready' of an evaluator"):
        push(evaluator, learner.spec, unroll)
    push(actor, learner.spec, unroll)
    assert learner.batches.get(5)
    assert learner.server.num_connected == 1


def test_of_many_evaluators_the_oldest_says_hello_again(serve, client_of):
    learner = serve(actors=1)
    learner.server.publish(1, np.zeros(10, np.float32), 10)
    evaluators = [client_of(learner, **EVALUATOR) for _ in range(20)]
    for evaluator in evaluators:
        evaluator.connect()
    assert len(learner.server._peers) == 16
    assert evaluators[0].pull(-1)[0] == 1
    assert evaluators[19].pull(-1)[0] == 1


def test_an_unknown_role_is_refused():
    hello = {"type": "hello", "task": 0, "num_envs": 1, "host": "h", "pid": 1}
    assert Peer((b"a", b""), hello).role == ""
    for role in ("learner", 5, None):
        with pytest.raises(BadMessage, match="bad role"):
            Peer((b"a", b""), {**hello, "role": role})


def test_the_learners_own_key_lets_its_evaluator_in(serve, client_of, tmp_path):
    content, _ = curve.make_for_run(["host"])
    path = str(tmp_path / "learner.key")
    curve.write(path, content)
    learner = serve(keys=curve.load(path))
    learner.server.publish(3, np.zeros(10, np.float32), 7)
    evaluator = client_of(learner, keys=curve.load(path), **EVALUATOR)
    evaluator.connect()
    assert evaluator.pull(-1)[0] == 3
    assert evaluator.frames == 7
