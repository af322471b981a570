"""The workers' CSV: what is read, how actors are dealt, and what is refused in which words."""

import os
import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from frontend import workers
from impala_torch.flags.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = ",".join(workers.COLUMNS)
GOOD = [HEADER, "learner,localhost,8001,,22,,", "actor,localhost,9001,,22,,"]


def worker(job, port):
    return workers.Worker(job, "localhost", port, "", 22, "", "", port)


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines):
        path = tmp_path / "workers.csv"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write_lines


def test_the_example():
    sets = workers.read(str(ROOT / "sandbox" / "local_workers_example.csv"))
    assert [one.learner.address for one in sets] == ["localhost:8001", "localhost:8002"]
    assert [[actor.address for actor in one.actors] for one in sets] == [
        ["localhost:9001", "localhost:9003"],
        ["localhost:9002"],
    ]


def test_a_row_is_read_whole(write):
    path = write(
        "# my machines",
        "",
        "ip,job,tf_port,cuda_visible_devices,ssh_username,ssh_port,ssh_password",
        " host-a , learner ,8001",
        '   # a comment, "with a quote',
        ",,,,,,",
        'host-b,actor,9001,"0,1",me,2222,canary',
    )
    (one,) = workers.read(path)
    assert (one.learner.ip, one.learner.ssh_port, one.learner.line) == ("host-a", 0, 4)
    (actor,) = one.actors
    assert actor == workers.Worker("actor", "host-b", 9001, "0,1", 2222, "me", "canary", 7)
    assert "canary" not in repr(one)


def test_optional_columns(write):
    path = write(
        HEADER + ",workdir,python,num_envs,ssh_key_path",
        "learner,host-a,8001,,,,",
        "actor,host-b,9001,,,,,/work dir,/usr/bin/python3,24,~/.ssh/other",
    )
    (one,) = workers.read(path)
    assert (one.learner.workdir, one.learner.python, one.learner.num_envs) == ("", "", 0)
    (actor,) = one.actors
    assert (actor.workdir, actor.python) == ("/work dir", "/usr/bin/python3")
    assert (actor.num_envs, actor.ssh_key_path) == (24, "~/.ssh/other")


def test_what_is_not_needed_may_be_left_out(write):
    path = write("tf_port,job,ip", "8001,learner,host-a", "9001,actor,host-b")
    (one,) = workers.read(path)
    assert one.learner.address == "host-a:8001"
    assert (one.actors[0].ssh_username, one.actors[0].ssh_port) == ("", 0)


def test_all_mistakes_are_told_at_once_with_line_and_column(write):
    path = write(
        HEADER + ",num_envs",
        "boss,localhost,8001,,,,",
        "actor,,x,,,,",
        "actor,h,9001,,canary,me,canary",
        "actor,h,9001,,,me,canary,many",
        "actor,h,9002,,,me,other-canary",
    )
    with pytest.raises(UserError) as caught:
        workers.read(path)
    told = str(caught.value).splitlines()
    places = ["line 2 column job", "line 3 column ip", "line 3 column tf_port"]
    places += ["line 4 column ssh_port", "line 5 column num_envs", "line 5 column tf_port"]
    places += ["line 6 column ssh_password"]
    assert [line.split(": ")[0] for line in told] == [f"{path} {place}" for place in places]
    assert "canary" not in str(caught.value)


def test_a_long_list_of_mistakes_ends(write):
    with pytest.raises(UserError, match="and 80 mistakes more"):
        workers.read(write(HEADER, *[f"actor,h{i},x,,,," for i in range(100)]))


def test_a_file_that_shows_passwords_to_others_gets_a_warning(write):
    path = write(HEADER, "learner,h,8001,,,me,canary", "actor,h,9001,,,me,canary")
    sets = workers.read(path)
    os.chmod(path, 0o644)
    warning = workers.privacy_warning(path, sets)
    assert f"chmod 600 {path}" in warning
    assert "canary" not in warning
    os.chmod(path, 0o600)
    assert workers.privacy_warning(path, sets) == ""
    os.chmod(path, 0o644)
    assert workers.privacy_warning(path, workers.read(write(*GOOD))) == ""


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(
    data=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.sampled_from([*GOOD, ",", '"', "\n", "\r", "\0", "learner", "ü", "#", "\ufeff"]),
            max_size=30,
        ).map(lambda parts: "".join(parts).encode()),
    )
)
def test_arbitrary_bytes_are_workers_or_a_users_error(tmp_path, data):
    path = tmp_path / "workers.csv"
    path.write_bytes(data)
    try:
        sets = workers.read(str(path))
    except UserError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert sets


def test_a_spreadsheets_file_is_read(tmp_path):
    path = tmp_path / "workers.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(GOOD).encode())
    assert len(workers.read(str(path))) == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["is empty", "job,ip"]),
        (["# nothing"], ["is empty"]),
        (["job,ip", *GOOD[1:]], ["line 1", "missing columns: 'tf_port';"]),
        ([HEADER + ",gpu", *GOOD[1:]], ["line 1", "'gpu' is unknown"]),
        ([HEADER + ",ip", *GOOD[1:]], ["line 1", "'ip' is unknown or there twice"]),
        ([*GOOD, "boss,localhost,1,,,,"], ["line 4", "job 'boss'", "learner or actor"]),
        ([HEADER, GOOD[2]], ["no learner"]),
        ([HEADER, GOOD[1]], ["1 learner(s) and 0 actor(s)", "line 2", "at least one"]),
        ([*GOOD, "learner,localhost,8002,,,,"], ["2 learner(s) and 1 actor(s)", "line 4"]),
        ([*GOOD, "actor,localhost,many,,,,"], ["line 4", "tf_port 'many'", "1 to 65535"]),
        ([*GOOD, "actor,localhost,0,,,,"], ["line 4", "tf_port '0'"]),
        ([*GOOD, "actor,localhost,65536,,,,"], ["line 4", "tf_port '65536'"]),
        ([*GOOD, "actor,localhost,,,,,"], ["line 4", "tf_port ''"]),
        ([*GOOD, "actor,localhost,²,,,,"], ["line 4", "tf_port '²'"]),
        ([*GOOD, "actor,localhost,9002,,canary,,"], ["line 4", "ssh_port is not a port"]),
        ([*GOOD, "actor,localhost,9001,,,,"], ["line 4", "localhost:9001", "line 3"]),
        ([*GOOD, "actor,127.0.0.1,9001,,,,"], ["line 4", "127.0.0.1:9001", "line 3"]),
        ([*GOOD, "actor,,9002,,,,"], ["line 4", "ip is empty"]),
        ([*GOOD, "actor,::1,9002,,,,"], ["line 4", "ip '::1'"]),
        ([*GOOD, "actor,localhost,9002,0,1,22,me,canary"], ["line 4", "8 fields", "quotes"]),
        ([*GOOD, 'actor,"localhost,9002'], ["not CSV", "quotes"]),
    ],
)
def test_what_cannot_work_is_told_in_a_sentence(write, lines, words):
    path = write(*lines)
    with pytest.raises(UserError) as caught:
        workers.read(path)
    message = str(caught.value)
    for word in [path, *words]:
        assert word in message
    assert "\n" not in message
    assert "canary" not in message


def test_what_is_no_readable_file(tmp_path):
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"job,ip\xff\xfe")
    cases = {tmp_path / "none.csv": "does not exist", tmp_path: "directory", binary: "UTF-8"}
    for path, word in cases.items():
        with pytest.raises(UserError, match=word) as caught:
            workers.read(str(path))
        assert str(path) in str(caught.value)


@hypothesis.given(jobs=st.lists(st.sampled_from(workers.JOBS), max_size=40))
def test_actors_are_dealt_round_robin(jobs):
    rows = [worker(job, port) for port, job in enumerate(jobs, start=1)]
    learners = [row for row in rows if row.job == "learner"]
    actors = [row for row in rows if row.job == "actor"]
    if not learners or len(actors) < len(learners):
        with pytest.raises(UserError):
            workers.deal(rows, "workers.csv")
        return
    sets = workers.deal(rows, "workers.csv")
    assert [one.learner for one in sets] == learners
    assert [one.index for one in sets] == list(range(len(learners)))
    dealt = {index: list(one.actors) for index, one in enumerate(sets)}
    for number, actor in enumerate(actors):
        assert dealt[number % len(learners)].pop(0) == actor
    assert not any(dealt.values())
