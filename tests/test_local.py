"""How local training looks after its actors."""

import subprocess
import sys

import pytest

from impala_torch import local
from impala_torch.flags import exit_codes
from impala_torch.flags.config import Config


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
        return local._Actors(Config(num_actors=1), tmp_path, set), starts

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
