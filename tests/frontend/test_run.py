"""Runs on this machine as the frontend starts them: real learners, actors, mpirun and tmux."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from tests.conftest import ROOT
from tests.test_experiment import (
    CARTPOLE,
    frames_of,
    has_frames,
    metrics_of,
    processes_with,
    wait_until,
)

pytestmark = pytest.mark.slow


def sessions(env) -> str:
    listing = subprocess.run(
        ["tmux", "list-sessions"], env=env, capture_output=True, text=True, check=False
    )
    return listing.stdout


@pytest.fixture
def example_csv(tmp_path, free_port):
    """The example with free ports, so that a run of the user's does not disturb the test."""
    text = (ROOT / "sandbox" / "local_workers_example.csv").read_text()
    for port in ("8001", "8002"):
        text = text.replace(f",{port},", f",{free_port()},")
    path = tmp_path / "workers.csv"
    path.write_text(text)
    return path


def test_the_readmes_example_runs_to_its_end_and_leaves_nothing(
    run_python, tmux_env, example_csv, tmp_path
):
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"```\n(python run_experiment_mm_raw.py .*?)```", readme, re.DOTALL)[1]
    flags = command.replace("\\\n", " ").split()[2:]
    changed = [flag for flag in flags if "csv_path" not in flag and "total_env" not in flag]
    assert len(flags) - len(changed) == 2
    logdir = tmp_path / "run"
    flags = [
        *changed,
        f"--workers_csv_path={example_csv}",
        "--total_environment_frames=60000",
        f"--logdir={logdir}",
        "--num_envs=8",
    ]
    done = run_python("run_experiment_mm_raw.py", *flags, "--follow", env=tmux_env, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("tmux attach -t impala", "--tmux_sess=impala --action=stop", "frames/s"):
        assert said in done.stdout
    assert "impala" not in sessions(tmux_env)
    assert not processes_with(str(logdir))
    assert frames_of(logdir) >= 60000
    last = metrics_of(logdir)[-1]
    # Two learners, 32 unrolls of 20 steps each, one frame a step.
    assert int(last["updates"]) * 2 * 32 * 20 == int(last["frames"])
    for name in ("actor-0-0", "actor-0-1", "actor-1-0"):
        assert "run has ended" in (logdir / "workers" / f"{name}.log").read_text()
    assert (logdir / "workers" / "learner-1-1.log").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--agent_name=NoAgent", "is not in the zoo: SimpleConvNetAgent"),
        ("--agent_name=MLPAgent", "does not fit the level"),
        ("--level_name=PoongNoFrameskip-v4", "did you mean Pong"),
    ],
)
def test_an_unknown_agent_or_level_is_told_before_anything_starts(
    run_python, tmux_env, example_csv, tmp_path, flag, said
):
    logdir = tmp_path / "run"
    result = run_python(
        "run_experiment_mm_raw.py",
        *(f"--workers_csv_path={example_csv}", f"--logdir={logdir}", flag),
        env=tmux_env,
    )
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not logdir.exists()
    assert not sessions(tmux_env)


# --- a run's life -------------------------------------------------------------------------------


class Run:
    """A CartPole run of a test, in a tmux server of its own."""

    def __init__(self, run_python, start, env, tmp_path, csv):
        self._run_python, self._start = run_python, start
        self.env, self.csv = env, csv
        self.logdir = tmp_path / "my run"
        self.flags = [f"--workers_csv_path={csv}", f"--logdir={self.logdir}", *CARTPOLE]

    def call(self, *flags, code=0):
        done = self._run_python("run_experiment_mm_raw.py", *flags, env=self.env, timeout=200)
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def begin(self, *flags, code=0):
        return self.call(*self.flags, *flags, code=code)

    def popen(self, *flags, **kwargs):
        argv = [sys.executable, "run_experiment_mm_raw.py", *self.flags, *flags]
        return self._start(argv, env=self.env, stdout=subprocess.PIPE, text=True, **kwargs)

    def windows(self):
        listing = subprocess.run(
            ["tmux", "list-windows", "-t", "=impala", "-F", "#{window_name}"],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return listing.stdout.split()

    def processes(self):
        return processes_with(str(self.logdir)) + processes_with(self.env["HOME"])

    def log(self, name="learners"):
        path = self.logdir / "workers" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def pids(self, *flags):
        """Processes of this run's with these flags."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().decode(errors="replace").split("\0")
                mine = words[0].endswith("python") and f"--logdir={self.logdir}" in words
                if mine and set(flags) <= set(words):
                    found.append(int(path.parent.name))
        return found

    def kill_learner(self, number=signal.SIGKILL, *flags):
        """Kills a learner as a crash would, or sends it another signal."""
        pid = self.pids("--job_name=learner", *flags)[0]
        os.kill(pid, number)
        return pid

    def state(self):
        """What --action=status says, whatever its exit code."""
        done = self._run_python("run_experiment_mm_raw.py", "--action=status", env=self.env)
        return done.returncode, done.stdout


def has_ended(pid):
    """Whether a process is gone; one that nobody has reaped yet is."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def make_run(run_python, start, tmux_env, tmp_path, free_port):
    def make(learners=1, actors=2):
        rows = ["job,ip,tf_port,cuda_visible_devices,ssh_port,ssh_username,ssh_password"]
        rows += [f"learner,localhost,{free_port()},,,," for _ in range(learners)]
        rows += [f"actor,localhost,{9001 + task},,,," for task in range(actors)]
        path = tmp_path / "workers.csv"
        path.write_text("\n".join(rows) + "\n")
        return Run(run_python, start, tmux_env, tmp_path, path)

    return make


def assert_attach_shows_the_windows(run):
    """Attaches on a terminal, reads the names of the windows, and has tmux let go."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    argv = [sys.executable, "run_experiment_mm_raw.py", "--action=attach"]
    env = {**run.env, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        argv, cwd=ROOT, env=env, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    seen = bytearray()

    def read():
        with contextlib.suppress(OSError):
            while data := os.read(leader, 65536):
                seen.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_until(lambda: b"actor-0-1" in seen)
    subprocess.run(["tmux", "detach-client", "-s", "=impala"], env=run.env, check=True)
    assert process.wait(timeout=10) == 0
    reader.join(5)
    os.close(leader)


def test_a_run_is_started_seen_replaced_and_stopped(make_run):
    run = make_run()
    said = run.begin()
    assert "2 of 2 actor(s)" in said
    assert said.count("welcomed") == 2
    assert run.windows() == ["learners", "monitor", "actor-0-0", "actor-0-1"]
    wait_until(lambda: has_frames(run.logdir))
    (status,) = json.loads(run.call("--action=status", "--json"))
    assert [actor["task"] for actor in status["status"]["actors"]] == [0, 1]
    assert status["status"]["frames"] > 0
    assert "localhost" in run.call("--action=status")
    assert "welcomed by the learner" in run.call("--action=logs", "--worker=actor-0-1")
    assert "frames/s" in run.call("--action=logs")
    assert "nothing was gone" in run.call("--action=heal")
    assert_attach_shows_the_windows(run)
    refused = run.begin(code=2)
    assert "is in tmux session 'impala' already" in refused
    for way in ("--action=status", "--action=stop", "--replace", "--tmux_sess"):
        assert way in refused
    frames = frames_of(run.logdir) if list(run.logdir.glob("*.pt")) else 0
    replaced = run.begin("--replace")
    assert "has ended" in replaced
    assert "2 of 2 actor(s)" in replaced
    assert frames_of(run.logdir) > frames  # the first one wrote a checkpoint
    wait_until(lambda: "going on from" in run.log())
    assert "has ended" in run.call("--action=stop")
    assert run.windows() == []
    wait_until(lambda: not run.processes())
    assert "has ended" in run.call("--action=stop")  # nothing is left to stop
    assert "has ended" in run.call("--action=status", code=2)
    assert "has ended" in run.call("--action=attach", code=2)
    assert "checkpoint" in run.call("--action=logs")


def test_following_shows_progress_and_ctrl_c_stops_the_run(make_run):
    run = make_run(learners=2)
    process = run.popen("--follow")
    out = ""
    while "frames/s" not in out:
        line = process.stdout.readline()
        assert line, out
        out += line
    process.send_signal(signal.SIGINT)
    out += process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "stopping after a checkpoint" in out
    assert frames_of(run.logdir) > 0
    assert run.windows() == []
    wait_until(lambda: not run.processes())


def test_ctrl_c_while_it_starts_leaves_nothing(make_run):
    run = make_run()
    process = run.popen(stderr=subprocess.PIPE)
    wait_until(lambda: "learners" in run.windows())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "interrupted\n"
    assert run.windows() == []
    wait_until(lambda: not run.processes())


def test_ctrl_c_in_the_learners_window_ends_the_run(make_run):
    run = make_run()
    run.begin()
    wait_until(lambda: has_frames(run.logdir))
    subprocess.run(["tmux", "send-keys", "-t", "=impala:=learners", "C-c"], env=run.env, check=True)
    wait_until(lambda: run.windows() == [])
    assert frames_of(run.logdir) > 0
    wait_until(lambda: not run.processes())


def test_learners_that_die_are_started_again_so_often_and_no_more(make_run):
    run = make_run(learners=2)
    run.begin("--max_restarts=1", "--save_checkpoint_secs=1")
    actors = run.log("actor-0-0")
    assert "welcomed" in actors
    wait_until(lambda: list(run.logdir.glob("checkpoint-[1-9]*.pt")))
    run.kill_learner()
    wait_until(lambda: "starting them again from the newest checkpoint" in run.log())
    wait_until(lambda: "going on from" in run.log())
    wait_until(lambda: run.log("actor-0-0") != actors)
    assert "keep going" not in run.log("actor-0-0")  # the actors waited
    run.kill_learner()
    wait_until(lambda: "started again 1 time(s) in the last hour already" in run.log())
    wait_until(lambda: run.windows() == ["learners"])  # it stays, to be read
    wait_until(lambda: not run.pids("--job_name=actor"))
    assert frames_of(run.logdir) > 0


def test_a_frozen_learner_is_told_and_the_group_started_again(make_run):
    run = make_run(learners=2)
    run.begin("--stall_secs=12", "--save_checkpoint_secs=1")
    wait_until(lambda: list(run.logdir.glob("checkpoint-[1-9]*.pt")))
    frozen = run.kill_learner(signal.SIGSTOP, "--task=1")
    wait_until(lambda: "learner 1 does not answer" in run.log())
    code, said = run.state()
    assert code == 1
    assert re.search(r"learner 0 has stood still for .*; it hears nothing of learner 1", said)
    assert "stalled for 0:00:" in said
    assert "warning: learner 1 at " in said
    wait_until(lambda: "the learners stood still and ended (exit code 5): starting" in run.log())
    assert "it ends with exit code 5 (--stall_secs=12). Its threads:" in run.log()
    assert "in synchronize" in run.log() or "in _wait" in run.log()
    wait_until(lambda: "going on from" in run.log(), 90)
    assert has_ended(frozen)
    wait_until(lambda: run.state()[0] == 0)
    # And while they are frozen they can be stopped.
    run.kill_learner(signal.SIGSTOP, "--task=0")
    begun = time.monotonic()
    run.call("--action=stop")
    assert time.monotonic() - begun < 100
    assert run.windows() == []
    wait_until(lambda: not run.processes())


def test_a_learner_alone_that_is_frozen_is_started_again(make_run):
    run = make_run()
    run.begin("--stall_secs=5", "--start_timeout=30", "--save_checkpoint_secs=1000")
    frozen = run.kill_learner(signal.SIGSTOP)
    wait_until(lambda: "no learner has answered for 35 s: ending them" in run.log(), 150)
    wait_until(lambda: "starting them again from the " in run.log(), 90)
    wait_until(lambda: run.pids("--job_name=learner") not in ([], [frozen]), 60)
    wait_until(lambda: has_frames(run.logdir))
    run.call("--action=stop")
    wait_until(lambda: not run.processes())


def test_an_actor_that_hangs_is_ended_and_started_again(make_run):
    run = make_run()
    run.begin("--heal_secs=5", "--start_timeout=60")
    (hung,) = run.pids("--job_name=actor", "--task=1")
    wait_until(lambda: has_frames(run.logdir))
    os.kill(hung, signal.SIGSTOP)
    wait_until(lambda: re.search(r" silent for \d+ s", run.state()[1]), 60)
    wait_until(lambda: "actor-0-1: running, but not heard of: ending" in run.log(), 120)
    wait_until(lambda: "started again actor-0-1" in run.log(), 60)
    wait_until(lambda: run.pids("--job_name=actor", "--task=1") not in ([], [hung]), 60)
    assert has_ended(hung)
    wait_until(lambda: "not connected" not in run.state()[1], 60)
    (hung,) = run.pids("--job_name=actor", "--task=0")
    os.kill(hung, signal.SIGSTOP)
    wait_until(lambda: " gone" in run.state()[1], 120)
    assert "actor-0-0" in run.call("--action=heal")  # at once, where somebody asks for it
    assert has_ended(hung)
    run.call("--action=stop")
    wait_until(lambda: not run.processes())


def test_ending_the_session_leaves_no_process(make_run):
    run = make_run(learners=2)
    run.begin()
    subprocess.run(["tmux", "kill-session", "-t", "=impala"], env=run.env, check=True)
    wait_until(lambda: not run.processes())
    assert "has ended" in run.call("--action=stop")


def test_an_actor_that_cannot_run_is_told_with_its_log(make_run):
    run = make_run()
    # Only actors make environments of that many threads.
    said = run.begin("--num_envs=5000", "--start_timeout=30", code=1)
    assert "only 0 of 2 actor(s) started" in said
    assert "ended at once with exit code" in said or "started again and again" in said
    assert "the end of actor-0-0's log:" in said
    assert run.windows() == []
    wait_until(lambda: not run.processes())
