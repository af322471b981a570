"""The frontend's example, whole: real learners, actors, mpirun and tmux, to the frame limit."""

import os
import re
import shutil
import subprocess
import tempfile

import pytest

from tests.conftest import ROOT
from tests.test_experiment import frames_of, metrics_of, processes_with

pytestmark = pytest.mark.slow


@pytest.fixture
def tmux_env():
    """Environment with a tmux server of the test's own."""
    directory = tempfile.mkdtemp(prefix="t", dir="/tmp")  # a socket's path must be short
    env = {key: value for key, value in os.environ.items() if key != "TMUX"}
    env["TMUX_TMPDIR"] = directory
    yield env
    subprocess.run(["tmux", "kill-server"], env=env, capture_output=True, check=False)
    shutil.rmtree(directory)


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
        "--total_environment_frames=200000",
        f"--logdir={logdir}",
        "--num_envs=8",
    ]
    done = run_python("run_experiment_mm_raw.py", *flags, "--follow", env=tmux_env, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("tmux attach -t impala", "send-keys -t impala:learners C-c", "frames/s"):
        assert said in done.stdout
    assert "impala" not in sessions(tmux_env)
    assert not processes_with(str(logdir))
    assert frames_of(logdir) >= 200000
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
