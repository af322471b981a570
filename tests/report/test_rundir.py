"""A run's directory: its own from the start to the end, whatever ends it."""

import logging
import subprocess
import sys
import time

import pytest

from impala_torch import preflight
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.report import rundir
from tests.conftest import ROOT

CONFIG = Config(level_name="CartPole-v1", agent_name="MLPAgent")
HOLD = """
import sys, time
from impala_torch.flags.config import Config
from impala_torch.report import rundir
rundir.prepare(Config(level_name="CartPole-v1", agent_name="MLPAgent", logdir=sys.argv[1]))
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_runs_that_start_in_one_second_have_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir, "default_logdir", lambda _: "logs/CartPole-v1/20260102-030405")
    made = [rundir.prepare(CONFIG) for _ in range(3)]
    names = [path.name for path in made]
    assert names == [f"20260102-030405{suffix}" for suffix in ("", "-2", "-3")]
    assert (tmp_path / "logs" / "latest").resolve() == made[-1]
    assert all((path / "config.json").exists() for path in made)


def holding(start, folder, secs) -> subprocess.Popen:
    """A process that has a run's directory, for so long."""
    argv = [sys.executable, "-c", HOLD, folder, secs]
    process = start(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_directory_in_use_is_refused_and_free_once_its_process_is_gone(
    tmp_path, start, monkeypatch
):
    config = CONFIG.replace(logdir=str(tmp_path / "run"))
    first = holding(start, config.logdir, 600)
    written = (tmp_path / "run" / "config.json").stat().st_mtime_ns
    monkeypatch.setattr(rundir, "_LOCK_SECS", 1.0)
    with pytest.raises(UserError, match=f"in use by process {first.pid} on ") as caught:
        rundir.prepare(config.replace(seed=2))
    assert f"--logdir={config.logdir} " in str(caught.value)
    assert (tmp_path / "run" / "config.json").stat().st_mtime_ns == written
    assert checkpoint.restore(tmp_path / "run") is None  # readers are not kept out
    first.kill()
    first.wait()
    assert rundir.prepare(config) == tmp_path / "run"
    assert rundir.prepare(config) == tmp_path / "run"  # it is this process's


def test_a_start_waits_a_while_for_the_one_before_to_end(tmp_path, start, caplog):
    config = CONFIG.replace(logdir=str(tmp_path / "run"))
    first = holding(start, config.logdir, 1.5)
    with caplog.at_level("INFO"):
        assert rundir.prepare(config) == tmp_path / "run"
    assert caplog.text.count(f"in use by process {first.pid} on ") == 1


def test_the_check_before_a_start_tells_at_once_of_a_directory_in_use(tmp_path, start):
    config = CONFIG.replace(logdir=str(tmp_path / "run"))
    preflight.check(config)
    assert not (tmp_path / "run").exists()
    first = holding(start, config.logdir, 600)
    with pytest.raises(UserError, match=f"in use by process {first.pid} on "):
        preflight.check(config)
    first.kill()
    first.wait()
    preflight.check(config)


def test_what_a_killed_process_was_writing_goes_at_the_next_start(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    ours = (".checkpoint-400.pt.71", ".checkpoint.json.71", ".config.json.7", ".results.json.71")
    theirs = (".checkpoint-400.pt", ".notes.json.7", ".checkpoint-4.pt.old", "checkpoint-4.pt.7")
    for name in (*ours, *theirs):
        (folder / name).write_text("{")
    rundir.prepare(CONFIG.replace(logdir=str(folder)))
    left = {path.name for path in folder.iterdir()}
    assert left == {*theirs, rundir.LOCK, "config.json", "workers"}


def test_a_log_that_cannot_be_written_is_told_once(tmp_path, capsys):
    path = tmp_path / "workers" / "learner-0-0.log"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        rundir.log_to(path)
        for _ in range(3):
            root.warning("a line")
    finally:
        for handler in [one for one in root.handlers if one not in before]:
            root.removeHandler(handler)
    told = capsys.readouterr().err
    assert told.count("learner-0-0.log cannot be written: No space left on device") == 1
    assert "Traceback" not in told


@pytest.mark.slow
def test_one_logdir_given_twice_is_noticed(start, run_python, tmp_path):
    from tests.test_experiment import CARTPOLE, has_frames, wait_until

    flags = [*CARTPOLE, f"--logdir={tmp_path / 'run'}", "--num_actors=1"]
    first = start([sys.executable, ROOT / "experiment.py", *flags])
    wait_until(lambda: has_frames(tmp_path / "run"))
    began = time.monotonic()
    second = run_python("experiment.py", *flags)
    assert second.returncode == 2
    assert f"in use by process {first.pid} on " in second.stderr
    assert "Traceback" not in second.stderr
    assert time.monotonic() - began < 100
    assert first.poll() is None
