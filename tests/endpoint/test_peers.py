"""A peer costs the others nothing: whatever one sends, or does, or fails to do."""

import contextlib
import gc
import os
import pathlib
import resource
import socket
import struct
import threading
import time
import weakref

import hypothesis
import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages, peers, server
from impala_torch.endpoint.client import EndpointClient, Refused, RunEnded, ask_status
from impala_torch.endpoint.codec import UnrollCodec
from impala_torch.endpoint.local_sockets import path_of
from impala_torch.flags.errors import UserError
from impala_torch.machine import sockets
from tests.conftest import random_unroll, small_spec
from tests.endpoint import test_endpoint
from tests.endpoint.test_endpoint import Learner, good_parts, push, raw_actor, receive
from tests.endpoint.test_relay import host, wait_until

serve, client_of = test_endpoint.serve, test_endpoint.client_of
__all__ = ["client_of", "host", "serve"]  # fixtures

SET = 3  # of test_endpoint's Learner


def raw(learner, keys=None, **options):
    """A socket that has said nothing yet."""
    sock = zmq.Context.instance().socket(zmq.DEALER)
    sock.linger = 0
    for name, value in options.items():
        setattr(sock, name, value)
    if keys is not None:
        curve.secure_client(sock, keys)
    sock.connect(f"tcp://{learner.address}")
    return sock


def hello(learner, **fields):
    said = {"protocol": messages.PROTOCOL, "spec": learner.spec.to_header(), "task": 0}
    return {"type": "hello", **said, "num_envs": 2, "host": "h", "pid": 1, **fields}


def packed(header, raw_values=()):
    """A header as msgpack, some of whose values are msgpack already."""
    packer = msgpack.Packer()
    parts = [packer.pack_map_header(len(header) + len(raw_values))]
    for name, value in header.items():
        parts += [packer.pack(name), packer.pack(value)]
    for name, value in dict(raw_values).items():
        parts += [packer.pack(name), value]
    return b"".join(parts)


def nested(depth):
    return b"\x91" * depth + b"\xc0"


def unroll_of(learner, num_envs=2, seed=0):
    return random_unroll(learner.spec, num_envs, np.random.default_rng(seed))


def gets_through(client, learner):
    """An actor's unroll becomes a batch."""
    sending = threading.Thread(target=pushes, args=(client, learner))
    sending.start()
    batch = learner.batches.get(15)
    if batch is None:
        learner.close()  # whoever waits is told to stop
    sending.join(15)
    assert batch is not None, "another's unroll did not get through"
    learner.batches.recycle(batch)


def pushes(client, learner):
    with contextlib.suppress(RunEnded):
        push(client, learner.spec, unroll_of(learner))


def resident_bytes():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- what it says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [nested(1000), nested(20), msgpack.packb("x" * 900_000), msgpack.packb(list(range(100_000)))],
    ids=["deep", "nested", "long", "many"],
)
@pytest.mark.parametrize("where", ["protocol", "spec", "unroll_length", "observation"])
def test_what_a_hello_names_is_refused_in_few_words(serve, client_of, value, where):
    learner = serve()
    said = hello(learner)
    sock = raw(learner)
    if where in said:
        del said[where]
        sock.send(packed(said, {where: value}))
    else:
        spec = said.pop("spec")
        del spec[where]
        sock.send(packed(said, {"spec": packed(spec, {where: value})}))
    answer = receive(sock)
    assert answer["type"] == "refused"
    assert "banned" not in answer  # it was understood
    assert len(answer["reason"]) <= 200
    assert answer["reason"].isprintable()
    sock.close()
    client = client_of(learner)
    client.connect()
    gets_through(client, learner)
    status = ask_status(learner.address)
    assert len(status["last_bad"]) <= 200


def test_what_is_said_of_a_peer_is_short_and_printable(serve):
    learner = serve()
    sock = raw(learner)
    sock.send(packed(hello(learner, host="\x1b[2J\n" + "h" * 10_000)))
    assert receive(sock)["type"] == "welcome"
    (actor,) = ask_status(learner.address)["actors"]
    assert actor["host"].startswith("?[2J?hh")
    assert len(actor["host"]) == 64
    sock.send(packed({"type": "\x1b[2J" + "t" * 10_000}))
    answer = receive(sock)
    assert len(answer["reason"]) <= 200
    assert answer["reason"].isprintable()
    assert ask_status(learner.address)["last_bad"].isprintable()
    sock.close()


def test_a_fault_of_our_own_costs_its_sender_alone(serve, client_of, monkeypatch, caplog):
    learner = serve()
    good = client_of(learner, task=1)
    good.connect()
    bad = raw_actor(learner)  # holds a credit

    def fault(*_):
        raise LookupError("nobody thought of that")

    monkeypatch.setattr(messages, "decode_waited", fault)
    bad.send_multipart(good_parts(learner.spec))
    answer = receive(bad)
    monkeypatch.undo()
    assert answer["banned"]
    assert "cannot be handled (LookupError)" in answer["reason"]
    assert "nobody thought of that" in caplog.text
    bad.close()
    assert learner.batches._reserved == 0
    gets_through(good, learner)


def test_more_episodes_than_steps_are_no_episodes(serve):
    learner = serve()
    for count, answer in ((14, "same"), (15, "refused")):
        sock = raw_actor(learner)
        episodes = [[1.0, 1, None, None]] * count
        header = messages.encode("unroll", episodes=episodes)
        sock.send_multipart([header, *good_parts(learner.spec)[1:]])
        sock.send(messages.encode("pull", version=0))
        assert receive(sock)["type"] == answer
        sock.close()
    assert len(learner.server.take_episodes()) == 14


def test_numbers_that_would_spoil_a_mean_are_refused(serve):
    learner = serve()
    for fields in (
        {"episodes": [[1e300, 1, None, None]]},
        {"episodes": [[1, 1, 1, -1e300]]},
        {"episodes": [], "waited": 1e300},
    ):
        sock = raw_actor(learner)
        header = messages.encode("unroll", **fields)
        sock.send_multipart([header, *good_parts(learner.spec)[1:]])
        assert receive(sock)["type"] == "refused"
        sock.close()


# --- one connection, several hellos -----------------------------------------------------------


@pytest.mark.parametrize("holding", ["credit", "place"])
@pytest.mark.parametrize("second", [{"task": 1}, {"task": 0}, {"role": messages.EVALUATOR}])
def test_a_second_hello_gives_back_what_the_first_held(serve, client_of, second, holding):
    learner = serve(batch=2, capacity=1)
    first = None
    if holding == "place":  # in the queue, behind who holds the only credit
        first = raw_actor(learner, task=3)
    sock = raw(learner)
    sock.send(packed(hello(learner)))
    assert receive(sock)["type"] == "welcome"
    sock.send(messages.encode("ready"))
    assert receive(sock)["type"] == ("credit" if first is None else "wait")
    sock.send(packed(hello(learner, **second)))
    assert receive(sock)["type"] == "welcome"
    if first is not None:
        first.close()
    good = client_of(learner, task=2)
    good.connect()
    gets_through(good, learner)
    assert learner.batches._reserved == 0
    tasks = [actor["task"] for actor in ask_status(learner.address)["actors"] if actor["pid"] == 1]
    assert tasks.count(0) == (second == {"task": 0})
    sock.close()


# --- who is gone, or does not move ------------------------------------------------------------


@pytest.fixture
def never_lapses(monkeypatch):
    """Credit is never taken back by the clock: who is gone must be noticed."""
    monkeypatch.setattr(peers, "CREDIT_SECS", 1e9)
    monkeypatch.setattr(server, "LOOK_SECS", 0.1)


@pytest.mark.usefixtures("never_lapses")
def test_who_died_waiting_gets_no_turn_and_who_died_with_credit_keeps_no_room(serve, client_of):
    learner = serve(batch=2, capacity=1, actors=8)
    dead = [raw_actor(learner, task=0)]
    for task in range(1, 6):
        dead.append(raw(learner))
        dead[-1].send(packed(hello(learner, task=task)))
        assert receive(dead[-1])["type"] == "welcome"
        dead[-1].send(messages.encode("ready"))
        assert receive(dead[-1])["type"] == "wait"
    for sock in dead:
        sock.close()
    alive = client_of(learner, task=7)
    alive.connect()
    gets_through(alive, learner)
    assert learner.batches._reserved == 0
    states = {actor["task"]: actor["state"] for actor in ask_status(learner.address)["actors"]}
    assert states == {**dict.fromkeys(range(6), "gone"), 7: "acting"}
    assert learner.server.missing_tasks() == list(range(7))


@pytest.mark.usefixtures("never_lapses")
def test_an_actor_that_left_a_relay_keeps_no_room(host):
    learner = host.learner(batch=2, capacity=1)
    host.relay()
    dead = [host.client(task) for task in range(3)]
    for client in dead:
        client.connect()
    dead[0]._ask(lambda: [messages.encode("ready")], "credit")  # and never sends
    for client in dead[1:]:
        client._send([messages.encode("ready")])
    wait_until(lambda: len(learner.server._queue) == 2)
    alive = host.client(3)
    alive.connect()
    for client in dead:
        client.close()
    host.clients = [alive]
    gets_through(alive, learner)
    assert learner.batches._reserved == 0
    assert learner.server.bad_messages == 0


def test_one_that_waits_and_is_silent_is_passed_over(serve, client_of, monkeypatch):
    monkeypatch.setattr(server, "SILENT_SECS", 2.0)
    learner = serve(batch=2, capacity=1)
    alive = client_of(learner, task=0, patience_secs=1)  # asks again three times in a second
    alive.connect()
    pushes(alive, learner)  # no room is left
    frozen = raw(learner)
    frozen.send(packed(hello(learner, task=1)))
    assert receive(frozen)["type"] == "welcome"
    frozen.send(messages.encode("ready"))
    assert receive(frozen)["type"] == "wait"
    sending = threading.Thread(target=pushes, args=(alive, learner))
    sending.start()
    time.sleep(2.5)
    learner.batches.recycle(learner.batches.get(5))
    second = learner.batches.get(10)
    if second is None:
        learner.close()
    sending.join(10)
    assert second is not None
    assert not frozen.poll(0)
    frozen.send(messages.encode("ready"))  # it moves again, and is served again
    assert receive(frozen)["type"] == "credit"
    frozen.close()


def test_an_unroll_that_comes_too_late_is_no_fault(serve, monkeypatch, caplog):
    monkeypatch.setattr(peers, "CREDIT_SECS", 0.2)
    monkeypatch.setattr(server, "LOOK_SECS", 0.1)
    learner = serve()
    slow = raw_actor(learner)
    wait_until(lambda: learner.batches._reserved == 0)
    slow.send_multipart(good_parts(learner.spec))
    slow.send(messages.encode("pull", version=0))
    while (kind := receive(slow)["type"]) == "wait":
        pass
    assert kind == "same"
    assert learner.batches.depth == 1  # there was room for it
    assert learner.server.status()["late_unrolls"] == 2
    assert "took 0 s to send its unroll (a slow link?): it was taken all the same" in caplog.text
    (peer,) = learner.server._peers.values()
    assert peer.credit_secs > 0.4  # its next may take longer
    slow.send_multipart(good_parts(learner.spec))
    assert "without credit" in receive(slow)["reason"]
    slow.close()


def test_one_that_sends_for_long_hears_that_the_endpoint_is_there(serve, monkeypatch):
    """Else it would connect anew, and what it sends be lost, each time."""
    monkeypatch.setattr(peers, "CREDIT_SECS", 0.2)
    monkeypatch.setattr(server, "LOOK_SECS", 0.1)
    learner = serve()
    slow = raw_actor(learner)
    wait_until(lambda: learner.batches._reserved == 0)
    for _ in range(10):
        assert receive(slow)["type"] in ("wait", "credit")
    slow.send_multipart(good_parts(learner.spec))
    wait_until(lambda: learner.server.late_unrolls == 2)
    slow.close()


def test_one_that_sends_nothing_for_its_credit_waits_longer_each_time(
    serve, client_of, monkeypatch, caplog
):
    monkeypatch.setattr(peers, "CREDIT_SECS", 0.3)
    monkeypatch.setattr(peers, "FIRST_PAUSE_SECS", 2.0)
    monkeypatch.setattr(server, "LOOK_SECS", 0.1)
    learner = serve()
    sock = raw(learner)
    sock.send(packed(hello(learner, task=1, num_envs=messages.MAX_ENVS)))
    assert receive(sock)["type"] == "welcome"
    pauses = []
    for _ in range(2):
        asked = time.monotonic()
        sock.send(messages.encode("ready"))
        while (kind := receive(sock)["type"]) == "wait":
            sock.send(messages.encode("ready"))
            time.sleep(0.1)
        assert kind == "credit"
        pauses.append(time.monotonic() - asked)
        wait_until(lambda: learner.batches._reserved == 0)
        sock.send(messages.encode("ready"))
        # It asks again at once, and others get through all the same.
        client = client_of(learner)
        client.connect()
        gets_through(client, learner)
    assert pauses[0] < 1 < pauses[1]
    assert "has let 2 credits in a row lapse: it waits 4 s for the next" in caplog.text
    (actor,) = (one for one in ask_status(learner.address)["actors"] if one["task"] == 1)
    assert actor["lapses"] == 2
    sock.close()


def test_one_that_plays_for_long_is_heard_of_all_the_same(serve, monkeypatch):
    monkeypatch.setattr(messages, "ALIVE_SECS", 0.1)
    monkeypatch.setattr(peers, "ABSENT_SECS", 1.0)
    learner = serve()
    client = EndpointClient(learner.address, learner.spec, 0, 2, timeout_secs=10)
    client.connect()
    with client.playing():
        for _ in range(20):
            time.sleep(0.1)
            assert learner.server.num_connected == 1
    assert learner.server.silent_processes() == set()
    monkeypatch.setattr(server, "SILENT_SECS", 1.0)
    time.sleep(1.2)  # at something else, and not a word
    assert learner.server.num_connected == 0
    assert learner.server.silent_processes() == {os.getpid()}
    assert client.pull(-1) is None
    assert learner.server.num_connected == 1
    assert learner.server.bad_messages == 0
    client.close()


# --- memory -----------------------------------------------------------------------------------


def test_no_honest_frame_is_larger_than_the_largest():
    spec = small_spec(shape=(5,), unroll_length=3)
    codec = UnrollCodec(spec)
    unroll = random_unroll(spec, messages.MAX_ENVS, np.random.default_rng(0))
    for name in ("reward", "policy_logits", "baseline", "agent_state", "action"):
        noise = np.random.default_rng(1).bytes(getattr(unroll, name).nbytes)
        getattr(unroll, name).view(np.uint8).ravel()[:] = np.frombuffer(noise, np.uint8)
    largest = max(map(len, codec.encode(unroll)))
    assert largest <= codec.largest_frame()
    large = UnrollCodec(small_spec(shape=(5,), unroll_length=3, state_size=1000))
    assert large.largest_frame() > 4 * 1000 * messages.MAX_ENVS > messages.MAX_HEADER_BYTES


def sent_before_the_end(sock, most):
    """How many bytes the other side takes of ``most`` until it ends the connection."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < most:
            sent += sock.send(bytes(1 << 20))
    return sent


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("flags", [0x06, 0x02], ids=["command", "message"])
def test_a_frame_too_large_for_the_run_ends_its_connection(
    serve, client_of, tmp_path, keyed, flags
):
    curve.make(str(tmp_path / "run.key"))
    keys = curve.load(str(tmp_path / "run.key")) if keyed else None
    learner = serve(keys=keys)
    mechanism = (b"CURVE" if keyed else b"NULL").ljust(20, b"\0")
    before = resident_bytes()
    with socket.create_connection(("127.0.0.1", int(learner.address.split(":")[1]))) as sock:
        sock.settimeout(10)
        sock.sendall(b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + mechanism + bytes(32))
        sock.sendall(struct.pack(">BQ", flags, 300_000_000))
        sent = sent_before_the_end(sock, 300_000_000)
    assert sent < 50_000_000
    assert resident_bytes() - before < 50_000_000
    client = client_of(learner, keys=keys)
    client.connect()
    gets_through(client, learner)


def test_connections_that_say_nothing_are_closed(serve, client_of, monkeypatch):
    monkeypatch.setattr(server, "HANDSHAKE_SECS", 1.0)
    learner = serve()
    where = ("127.0.0.1", int(learner.address.split(":")[1]))
    silent = [socket.create_connection(where, timeout=10) for _ in range(300)]
    client = client_of(learner)
    client.connect()
    gets_through(client, learner)
    for sock in silent:
        while sock.recv(100):  # its greeting, and then the end
            pass
        sock.close()
    gets_through(client, learner)


def test_one_that_never_reads_keeps_no_copies_of_weights(serve, client_of):
    learner = serve()
    lazy = raw(learner, rcvhwm=1, rcvbuf=4096)
    lazy.send(packed(hello(learner)))
    assert receive(lazy)["type"] == "welcome"
    published = []
    for version in range(20):
        flat = np.full(4_000_000, version, np.float32)
        published.append(weakref.ref(flat))
        learner.server.publish(version, flat)
        del flat
        asked = learner.server.bytes_received
        lazy.send(messages.encode("pull", version=-1))
        wait_until(lambda asked=asked: learner.server.bytes_received > asked)
    wait_until(lambda: len(learner.server._owed) == 1)
    gc.collect()
    assert sum(one() is not None for one in published) <= 4
    client = client_of(learner, task=1)
    client.connect()
    assert client.pull(-1)[0] == 19
    gets_through(client, learner)
    versions = []  # what it gets when it reads at last: what was under way, then the newest
    while not versions or versions[-1] < 19:
        assert lazy.poll(10_000)
        versions.append(messages.decode(lazy.recv_multipart(copy=False)[0].buffer)["version"])
    assert len(versions) <= 5
    lazy.close()


def test_answers_that_are_asked_for_one_after_the_other_all_come(serve):
    """Status and weights at once: the second waits until the first is handed over."""
    learner = serve()
    learner.server.publish(1, np.zeros(200_000, np.float32))
    sock = raw(learner)
    sock.send(packed(hello(learner)))
    assert receive(sock)["type"] == "welcome"
    for _ in range(200):
        for question, answer in (
            (messages.encode("status"), "status"),
            (messages.encode("pull", version=0), "weights"),
        ):
            sock.send(question)
            assert receive(sock)["type"] == answer
    assert learner.server.weights_sent == 200
    wait_until(lambda: not learner.server._large)
    sock.close()


def test_one_that_floods_with_questions_and_never_reads_keeps_no_answers(serve, client_of):
    learner = serve()
    lazy = raw(learner, rcvhwm=1, rcvbuf=4096, sndhwm=0)
    lazy.send(packed(hello(learner)))
    assert receive(lazy)["type"] == "welcome"
    before = resident_bytes()
    for _ in range(20_000):
        lazy.send(messages.encode("status"))
    client = client_of(learner, task=1)
    client.connect()
    gets_through(client, learner)
    assert resident_bytes() - before < 50_000_000
    assert len(learner.server._owed) <= 1
    lazy.close()


# --- keys and tasks ---------------------------------------------------------------------------


def run_keys(folder, names):
    learner, others = curve.make_for_run(names)
    loaded = {}
    for name, content in {"learner": learner, **others}.items():
        curve.write(str(folder / f"{name}.key"), content)
        loaded[name] = curve.load(str(folder / f"{name}.key"))
    return loaded


def test_a_key_is_good_for_its_tasks_alone(serve, client_of, tmp_path):
    keys = run_keys(tmp_path, {"frontend": [], "a": [(SET, 0), (SET, 1)], "b": [(SET, 2), (0, 1)]})
    learner = serve(keys=keys["learner"])
    one, other = client_of(learner, 1, keys=keys["a"]), client_of(learner, 2, keys=keys["b"])
    one.connect()
    other.connect()
    for name, task in (("b", 1), ("a", 2), ("frontend", 1), ("learner", 1), ("b", 0), ("a", 3)):
        thief = client_of(learner, task, keys=keys[name])
        with pytest.raises(Refused, match=rf"--task={task} of worker set 3 is not .*'{name}'"):
            thief.connect()
    assert one.pull(0) is other.pull(0) is None  # nobody took their places
    for name in ("frontend", "learner", "a"):
        client_of(learner, 0, keys=keys[name], role=messages.EVALUATOR).connect()
    assert ask_status(learner.address, keys["frontend"])["num_actors"] == 4
    again = client_of(learner, 1, keys=keys["a"])  # its own may, and takes the task's place
    again.connect()
    with pytest.raises(Refused, match="took the place"):
        one.pull(0)


def test_a_relay_has_its_hosts_tasks_alone(host, tmp_path):
    keys = run_keys(tmp_path, {"a": [(SET, 0)], "b": [(SET, 1)]})
    host.keys, host.key_file = keys["learner"], str(tmp_path / "a.key")
    host.learner()
    host.relay()
    host.client(0).connect()
    with pytest.raises(Refused, match=r"--task=1 of worker set 3 is not of the key 'a'"):
        host.client(1).connect()


# --- who may connect without keys -------------------------------------------------------------


def test_over_a_path_of_this_machine_only_its_user_connects(serve, client_of, caplog):
    with sockets.private_address() as address:
        learner = serve(address=address)
        client = client_of(learner)
        client.connect()
        gets_through(client, learner)
        assert ask_status(address)["num_actors"] == 4
        with pytest.raises(UserError, match="another learner serves"):
            serve(address=address)
        gets_through(client, learner)  # nobody took the path from it
        learner.close()
        assert "open to all users" not in caplog.text
        path_of(address).touch()
        with pytest.raises(UserError, match="exists and is not a socket"):
            serve(address=address)


def test_an_open_endpoint_says_that_it_is_open(serve, caplog, tmp_path):
    learner = serve()
    assert f"{learner.address} is open to all users of this machine" in caplog.text
    caplog.clear()
    serve(keys=run_keys(tmp_path, ["host"])["learner"])
    assert not caplog.text


# --- whatever one sends -----------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, -1, 2, 3, 4096, 4097, 2**31, 2**62]),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from(["", "hello", "evaluator", "x" * 100_000, b"x" * 100_000]),
)
VALUES = st.one_of(
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
        ),
        max_leaves=8,
    ).map(msgpack.packb),
    st.sampled_from([1, 10, 400, 1000, 1100, 5000]).map(nested),
    st.binary(max_size=30),
)
BUFFERS = st.one_of(
    st.just(None),  # as they should be
    st.lists(st.one_of(st.binary(max_size=200), st.just(b"\0" * 300_000)), max_size=4),
)
KINDS = ("hello", "pull", "ready", "unroll", "status", "gone", "credit", "stop")


@st.composite
def said(draw):
    """One message: what it is, whose fields are something else, and what follows the header."""
    kind = draw(st.sampled_from(KINDS))
    if draw(st.integers(0, 9)) == 0:
        return "garbage", {}, draw(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
    spoilt: dict[str, bytes] = {}
    if draw(st.booleans()):
        names = ["type", "task", "num_envs", "host", "pid", "protocol", "spec", "role", "version"]
        names += ["episodes", "waited", "spec.observation", "spec.unroll_length", "else"]
        spoilt = draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=2))
    return kind, spoilt, draw(BUFFERS)


def message(learner, kind, spoilt, buffers):
    if kind == "garbage":
        return buffers
    header = {"type": kind, "version": -1, "episodes": [], **hello(learner)} | {"type": kind}
    spec = header.pop("spec")
    of_spec = {name[5:]: value for name, value in spoilt.items() if name.startswith("spec.")}
    values = {name: value for name, value in spoilt.items() if not name.startswith("spec.")}
    plain = {name: value for name, value in spec.items() if name not in of_spec}
    values.setdefault("spec", packed(plain, of_spec))
    header = {name: value for name, value in header.items() if name not in values}
    if buffers is None:
        buffers = good_parts(learner.spec)[1:] if kind == "unroll" else []
    return [packed(header, values), *buffers]


@pytest.mark.slow
def test_whatever_one_peer_sends_another_gets_through(free_port, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "LOOK_SECS", 0.05)
    keys = run_keys(tmp_path, {"bad": [(SET, 0), (SET, 1)], "good": [(SET, 2)]})
    learner = Learner(free_port(), keys=keys["learner"])
    client = EndpointClient(
        learner.address, learner.spec, 2, 2, keys=keys["good"], timeout_secs=10, patience_secs=3
    )
    client.connect()
    learner.server.publish(1, np.zeros(10, np.float32))
    sizes = []

    @hypothesis.settings(deadline=None, max_examples=150, database=None)
    @hypothesis.given(st.booleans(), st.lists(said(), max_size=6), st.binary(max_size=70))
    def send(begun, sequence, actor_id):
        sock = raw(learner, keys["bad"], linger=2000)
        for kind in ("hello", "ready") if begun else ():  # as an actor does: it gets far
            sock.send_multipart([*messages.wrap(actor_id), *message(learner, kind, {}, None)])
        for one in sequence:
            sock.send_multipart([*messages.wrap(actor_id), *message(learner, *one)])
        answered = time.monotonic() + 0.05
        while sock.poll(max(0, int(1000 * (answered - time.monotonic())))):
            sock.recv_multipart()
        sock.close()
        gets_through(client, learner)
        wait_until(lambda: learner.batches._reserved == 0)
        assert learner.server.error is None
        assert set(learner.server._by_task) <= {0, 1, 2}
        assert len(learner.server._peers) <= 3 + server.MAX_EVALUATORS
        assert len(learner.server._owed) <= 1
        status = ask_status(learner.address, keys["good"])
        assert len(status["last_bad"]) <= messages.MAX_WORDS
        while learner.batches.depth >= 1:  # what the bad one sent as it should be
            learner.batches.recycle(learner.batches.get(5))
        sizes.append(resident_bytes())

    try:
        send()
        assert max(sizes[len(sizes) // 2 :]) - sizes[len(sizes) // 2] < 64_000_000
        assert learner.server.bad_messages > 10  # it was no idle talk
    finally:
        client.close()
        learner.close()
