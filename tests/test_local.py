"""How local training looks after its actors."""

import pathlib
import signal
import subprocess
import sys

import pytest

from impala_torch import local
from impala_torch.flags import exit_codes
from impala_torch.flags.config import Config
from tests.conftest import ROOT
from tests.test_experiment import wait_until


@pytest.fixture
def actors_of(monkeypatch, tmp_path):
    """Actors that are real processes, which only end, with exit codes of a list, by task."""

    def make(*codes: int) -> tuple[local._Actors, list[int]]:
        starts = []

        def start(self, task: int) -> subprocess.Popen:
            starts.append(task)
            code = codes[min(len(starts), len(codes)) - 1]
            process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
            process.wait(timeout=30)
            return process

        monkeypatch.setattr(local._Actors, "_start", start)
        (tmp_path / "workers").mkdir(exist_ok=True)
        (tmp_path / "workers" / "actor-0-0.log").write_text("last words\n")
        actors = local._Actors(Config(num_actors=1), tmp_path, set)
        actors.start()
        return actors, starts

    return make


def look(actors: local._Actors, monkeypatch, secs: float) -> bool:
    """Whether they are gone after so many seconds of a clock of our own, looked at each second."""
    clock = [0.0]
    monkeypatch.setattr(local.time, "monotonic", lambda: clock[0])
    actors._looked = 0.0
    for actor in actors._actors:
        actor.started = 0.0
    while clock[0] < secs:
        if actors.are_gone():
            return True
        clock[0] += 1
    return False


def test_pauses_grow_and_twenty_short_lives_in_a_row_are_the_last(actors_of, monkeypatch, caplog):
    actors, starts = actors_of(exit_codes.FAILED)
    assert look(actors, monkeypatch, 2000)
    assert len(starts) == 20
    told = [one.getMessage() for one in caplog.records if "ended with exit code 1" in one.message]
    assert [words.split(":")[1].strip() for words in told[:7]] == [
        f"it is started again in {secs} s; the end of its log" for secs in (1, 2, 4, 8, 16, 32, 60)
    ]
    assert "it died 20 times in a row at once, and is not started again" in told[-1]
    assert "last words" in told[0]


@pytest.mark.parametrize("code", [exit_codes.USERS_MISTAKE])
def test_what_would_end_the_same_way_again_is_not_started(actors_of, monkeypatch, caplog, code):
    actors, starts = actors_of(exit_codes.FAILED, code)
    assert look(actors, monkeypatch, 100)
    assert len(starts) == 2
    assert "it is not started again" in caplog.text


def test_one_that_ends_in_the_middle_as_if_all_were_done_is_started_again(actors_of, monkeypatch):
    actors, starts = actors_of(exit_codes.FINISHED)
    assert not look(actors, monkeypatch, 100)
    assert len(starts) > 5


def test_one_that_runs_and_is_not_heard_of_is_ended_and_started_again(
    monkeypatch, tmp_path, caplog
):
    started = []

    def start(self, task: int) -> subprocess.Popen:
        started.append(subprocess.Popen(["sleep", "600"]))
        return started[-1]

    monkeypatch.setattr(local._Actors, "_start", start)
    silent: set[int] = set()
    actors = local._Actors(Config(num_actors=2), tmp_path, lambda: silent)
    try:
        actors.start()
        silent |= {started[0].pid}
        assert not look(actors, monkeypatch, 100)
        assert len(started) == 2
        silent.clear()  # it is heard of again
        assert not look(actors, monkeypatch, 100)
        silent |= {started[0].pid}
        assert not look(actors, monkeypatch, 125)
        assert started[0].wait(10) == -9
        assert not look(actors, monkeypatch, 10)
        assert len(started) == 3
        said = f"actor 0 (process {started[0].pid}) has not been heard of for 120 s though it runs"
        assert said in caplog.text
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_one_that_cannot_be_started_again_is_tried_later_and_at_the_start_told(
    actors_of, monkeypatch, tmp_path, caplog
):
    actors, starts = actors_of(exit_codes.FAILED)

    def refuse(self, task: int) -> subprocess.Popen:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    start = local._Actors._start
    monkeypatch.setattr(local._Actors, "_start", refuse)
    assert not look(actors, monkeypatch, 100)
    assert "actor 0 cannot be started: [Errno 11] Resource temporarily unavailable" in caplog.text
    assert len(starts) == 1
    monkeypatch.setattr(local._Actors, "_start", start)
    assert not look(actors, monkeypatch, 200)
    assert len(starts) > 1
    monkeypatch.setattr(local._Actors, "_start", refuse)
    with pytest.raises(local.ActorsGone, match="actor 0 cannot be started"):
        local._Actors(Config(num_actors=1), tmp_path, set).start()


@pytest.mark.slow
def test_what_an_actor_started_goes_with_it(start, tmp_path):
    """As a simulator of an environment that hangs, and of one that is killed."""
    pids = tmp_path / "pids"
    level = "--level_name=tests.fakes:StartsAProcess-v0"
    flags = [level, "--agent_name=MLPAgent", "--num_actors=1", "--num_envs=1", "--env_timeout=3"]
    env = {"FAKES_PIDS": str(pids), "PYTHONPATH": str(ROOT)}
    process = start(
        [sys.executable, "experiment.py", *flags, f"--logdir={tmp_path / 'run'}"], env=env
    )

    def started():
        return [int(word) for word in pids.read_text().split()] if pids.exists() else []

    def is_gone(pid):
        stat = pathlib.Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(lambda: len(started()) >= 2)  # its step hung, and it was started again
    wait_until(lambda: is_gone(started()[0]))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    wait_until(lambda: all(map(is_gone, started())))
