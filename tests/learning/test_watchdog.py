"""The watchdog: what stands still is told of and ended, what takes its time is left alone."""

import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from impala_torch.flags import exit_codes
from impala_torch.learning import group as groups
from impala_torch.learning.group import Group
from impala_torch.learning.watchdog import Watchdog
from tests.conftest import ROOT

STALL_SECS = 3


@pytest.fixture
def ranks(start, tmp_path):
    """Runs watchdog_job.py with two ranks; returns the exit code and what each has in its log."""

    def run(what: str) -> tuple[int, list[str]]:
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        job = start(
            [
                *("mpirun", *root, "-bind-to", "none", "-map-by", "slot"),
                *("--mca", "btl_vader_single_copy_mechanism", "none"),
                *("--mca", "odls_base_sigkill_timeout", "1"),
                *("-np", "2", "-H", "localhost:2"),
                *(sys.executable, ROOT / "tests" / "watchdog_job.py", what, STALL_SECS, tmp_path),
            ],
            env={"OMP_NUM_THREADS": "1"},
        )
        try:
            code = job.wait(timeout=120)
        finally:
            pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
            left = [pid for pid in pids if is_running(pid)]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, "frozen ranks must end too"
        return code, [(tmp_path / f"rank-{rank}.log").read_text() for rank in (0, 1)]

    return run


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "at", "missing"),
    [
        ("frozen", "agreeing with the others", "learner 1 does not answer"),
        ("averaging", "averaging gradients", "learner 1 does not answer"),
        ("apart", "agreeing with the others", "learner 1 is averaging gradients"),
        ("stopping", "agreeing with the others", "learner 1 does not answer"),
    ],
)
def test_a_group_that_stands_still_says_why_and_ends(ranks, what, at, missing):
    code, (log, _) = ranks(what)
    assert code == exit_codes.STALLED
    words, last = log.strip().split("; it ends with exit code 5")
    assert f"learner 0 has been {at} for" in words.splitlines()[0]  # before it is too late
    assert missing in words.splitlines()[-1]
    for place in ("watchdog_job.py", "in work", "synchronize" if what == "averaging" else "_wait"):
        assert place in last


@pytest.mark.slow
@pytest.mark.parametrize("what", ["saving", "waiting", "back"])
def test_what_takes_its_time_is_left_alone(ranks, what):
    code, logs = ranks(what)
    assert code == 0
    assert "it ends" not in "".join(logs)
    told = {
        "saving": "learner 0 has been averaging gradients for",
        "back": "learner 0 has been agreeing with the others for",
    }
    if what in told:
        assert told[what] in logs[0]
        assert "learner 0 goes on after " in logs[0]
    assert ("learner 1 is writing a checkpoint" in logs[0]) == (what == "saving")


def watched(group, stall_secs, should_stop=lambda: False):
    """A watchdog that says with which code it would end the process."""
    ended = threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    return Watchdog(group, stall_secs, should_stop, end), ended, codes


@pytest.mark.slow
def test_own_work_may_take_ten_times_as_long_and_no_more():
    group = Group()
    group.phase = groups.SAVING
    watchdog, ended, codes = watched(group, 0.3)
    with watchdog:
        assert not ended.wait(1.9)
        status = watchdog.status()
        assert (status["phase"], status["still_secs"]) == ("writing a checkpoint", 0.0)
        assert status["phase_secs"] > 0
        assert ended.wait(10)
    assert codes[0] == exit_codes.STALLED


@pytest.mark.slow
@pytest.mark.parametrize("why", ["never", "ending", "going on"])
def test_a_rank_is_not_ended(why):
    group = Group()
    group.phase = {"ending": groups.ENDING}.get(why, groups.AVERAGING)
    watchdog, ended, _ = watched(group, 0.0 if why == "never" else 1.5)
    with watchdog:
        until = time.monotonic() + 4
        while time.monotonic() < until and not ended.wait(0.1):
            if why == "going on":
                with group.at(groups.AGREEING):
                    pass
    assert not ended.is_set()


@pytest.mark.slow
def test_a_log_that_takes_nothing_does_not_keep_it_from_its_end(monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr("impala_torch.learning.watchdog.log.log", lambda *_: stuck.wait(60))
    monkeypatch.setattr("impala_torch.learning.watchdog._LOG_SECS", 0.1)
    group = Group()
    group.phase = groups.AVERAGING
    watchdog, ended, codes = watched(group, 1.0)
    with watchdog:
        assert ended.wait(20)
    stuck.set()
    assert codes[0] == exit_codes.STALLED


@pytest.mark.slow
def test_ranks_that_never_come_are_not_waited_for(run_python):
    """MPI's start waits for them, and no other thread of Python's runs meanwhile."""
    code = (
        "import time, sys, types\n"
        "import horovod.torch\n"
        "from impala_torch.learning import group\n"
        "late = types.ModuleType('mpi4py'); sys.modules['mpi4py'] = late\n"
        "late.__getattr__ = lambda name: time.sleep(60)\n"
        "group.join(1.0)"
    )
    done = run_python("-c", code, env={"OMPI_COMM_WORLD_SIZE": "2"}, timeout=50)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in join" in done.stderr
