"""Key files: what each side holds, and who gets in with what."""

import dataclasses
import json
import os
import pathlib

import pytest
import zmq

from impala_torch.endpoint import keys as curve
from impala_torch.flags.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Paths of a run's key files: the learner's, and those of two hosts."""
    learner, others = curve.make_for_run(["h1", "h2"])
    paths = {}
    for name, content in {"learner": learner, **others}.items():
        paths[name] = str(tmp_path / name)
        curve.write(paths[name], content)
    return paths


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def test_each_side_holds_only_what_it_needs(files):
    learner, one, two = (read(files[name]) for name in ("learner", "h1", "h2"))
    assert set(one) == {"server_public", "actor_public", "actor_secret"}
    assert learner["accepted"] == {
        learner["actor_public"]: "learner",
        one["actor_public"]: "h1",
        two["actor_public"]: "h2",
    }
    secrets = {learner["server_secret"]} | {it["actor_secret"] for it in (learner, one, two)}
    assert len(secrets) == 4
    assert one["actor_secret"] not in pathlib.Path(files["learner"]).read_text()
    for path in files.values():
        assert os.stat(path).st_mode & 0o777 == 0o600
        keys = curve.load(path)
        assert not any(secret in repr(keys) for secret in secrets)


def test_a_learner_names_who_came_with_which_key(files, free_port):
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    learner = curve.load(files["learner"])
    authenticator = curve.Authenticator(context, learner)
    curve.secure_server(server, learner)
    address = f"tcp://127.0.0.1:{free_port()}"
    server.bind(address)
    clients = {}
    for name in ("h1", "h2"):
        clients[name] = context.socket(zmq.DEALER)
        curve.secure_client(clients[name], curve.load(files[name]))
        clients[name].connect(address)
        clients[name].send(name.encode())
    poller = zmq.Poller()
    poller.register(server, zmq.POLLIN)
    poller.register(authenticator.socket, zmq.POLLIN)
    heard = {}
    while len(heard) < 2:
        ready = dict(poller.poll(timeout=5000))
        assert ready, "no connection"
        if authenticator.socket in ready:
            authenticator.handle()
        if server in ready:
            _, frame = server.recv_multipart(copy=False)
            heard[frame.bytes.decode()] = frame.get("User-Id")
    assert heard == {"h1": "h1", "h2": "h2"}
    assert authenticator.denied == 0
    context.destroy(linger=0)


def test_keys_of_the_wrong_side_are_told(files):
    context = zmq.Context()
    with pytest.raises(UserError, match="actor's: a learner needs"):
        curve.secure_server(context.socket(zmq.ROUTER), curve.load(files["h1"]))
    learner = curve.load(files["learner"])
    without = dataclasses.replace(learner, actor_public=None, actor_secret=None)
    with pytest.raises(UserError, match="learner's: an actor needs"):
        curve.secure_client(context.socket(zmq.DEALER), without)
    context.destroy(linger=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"server_public": "short"}',
        '{"server_public": 5}',
        "null",
        '"x"',
        json.dumps({"server_public": "a" * 40, "actor_public": "b" * 40}),
        json.dumps({"server_public": "a" * 40, "accepted": []}),
        json.dumps({"server_public": "a" * 40, "tasks": []}),
        json.dumps({"server_public": "a" * 40, "tasks": {"h": 3}}),
        json.dumps({"server_public": "a" * 40, "tasks": {"h": [[1]]}}),
        json.dumps({"server_public": "a" * 40, "tasks": {"h": [["a", "b"]]}}),
    ],
)
def test_what_is_no_key_file_is_told(tmp_path, text):
    path = tmp_path / "k"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(UserError, match="not a key file"):
        curve.load(str(path))


def test_home_is_understood(files, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert curve.load("~/h1") == curve.load(files["h1"])


def test_a_name_has_the_tasks_it_was_given_and_without_a_word_of_any_all(tmp_path):
    learner, _ = curve.make_for_run({"h1": [(0, 0), (1, 2)], "h2": []})
    curve.write(str(tmp_path / "bound"), learner)
    bound = curve.load(str(tmp_path / "bound"))
    may = [(name, task) for name in ("h1", "h2", "learner") for task in ((0, 0), (1, 2), (2, 1))]
    assert [one for one in may if bound.may_act(one[0], *one[1])] == [
        ("h1", (0, 0)),
        ("h1", (1, 2)),
    ]
    free, _ = curve.make_for_run(["h1", "h2"])
    curve.write(str(tmp_path / "free"), free)
    curve.make(str(tmp_path / "all"))
    for name in ("free", "all"):
        keys = curve.load(str(tmp_path / name))
        assert all(keys.may_act(who, 3, 5) for who in ("h1", "learner", "actor"))


def test_a_path_of_this_machine_needs_a_folder_of_ones_own(tmp_path):
    own = tmp_path / "own"
    own.mkdir(0o700)
    assert curve.for_address(f"ipc://{own}/learner.ipc", "") is None
    assert curve.zmq_address(f"ipc://{own}/learner.ipc") == f"ipc://{own}/learner.ipc"
    curve.make(str(tmp_path / "k"))
    for mode in (0o755, 0o770, 0o701):
        own.chmod(mode)
        for key_file in ("", str(tmp_path / "k")):
            with pytest.raises(UserError, match=r"--learner_host=.*others can open the folder"):
                curve.for_address(f"ipc://{own}/learner.ipc", key_file)
    with pytest.raises(UserError, match="cannot be used: No such file"):
        curve.for_address(f"ipc://{tmp_path}/none/learner.ipc", "")
