"""What tests share: the project's root on sys.path for child processes, free ports, a run spec."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch

from impala_torch.endpoint.batches import Batch
from impala_torch.endpoint.run_spec import RunSpec
from impala_torch.structures import (
    EnvironmentSpec,
    LevelOptions,
    ObservationSpec,
    Unroll,
    empty_unroll,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A program that says when it is asked to stop, and does not.
STANDS_STILL = """
import time
from impala_torch.machine.processes import StopRequest
stop = StopRequest().install()
print("ready", flush=True)
while not stop.requested():
    time.sleep(0.01)
print("asked", flush=True)
time.sleep(600)
"""
# Two cores and many processes: more threads than cores only make every test slower.
torch.set_num_threads(1)


@pytest.fixture
def free_port():
    """A function that returns a port nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture
def run_python(tmp_path):
    """Runs a script of the project to its end; kills it and fails the test after ``timeout``."""

    def run(*argv: str, timeout: float = 120, **kwargs) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, argv)],
            cwd=kwargs.pop("cwd", ROOT),
            env={**os.environ, "PYTHONPATH": str(ROOT), **kwargs.pop("env", {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **kwargs,
        )

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a file system of its own, of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(path: pathlib.Path) -> None:
    """Takes all the room that there is, in a file."""
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        while True:
            file.write(bytes(1024))


@pytest.fixture
def start():
    """Starts processes, each in a group of its own; whichever of them is left at the test's end is
    ended with its group, by its id."""
    with contextlib.ExitStack() as stack:

        def launch(argv, **kwargs) -> subprocess.Popen:
            process = subprocess.Popen(
                list(map(str, argv)),
                cwd=kwargs.pop("cwd", ROOT),
                env={**os.environ, "PYTHONPATH": str(ROOT), **kwargs.pop("env", {})},
                start_new_session=True,
                # Where the tests run in the background Ctrl-C may be ignored, which is inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **kwargs,
            )
            stack.callback(_end, process)
            return process

        yield launch


@pytest.fixture
def tmux_env():
    """Environment with a home and a tmux server of the test's own."""
    directory = tempfile.mkdtemp(prefix="t", dir="/tmp")  # a socket's path must be short
    env = {key: value for key, value in os.environ.items() if key != "TMUX"}
    env["TMUX_TMPDIR"] = env["HOME"] = directory
    yield env
    subprocess.run(["tmux", "kill-server"], env=env, capture_output=True, check=False)
    shutil.rmtree(directory)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def small_spec(
    shape=(6, 5), dtype="uint8", stack=4, unroll_length=7, state_size=3, num_actions=4, **options
) -> RunSpec:
    environment = EnvironmentSpec(ObservationSpec(shape, dtype, stack), num_actions)
    level = LevelOptions("Level-v0", num_action_repeats=4)._replace(**options)
    return RunSpec("Agent", level, unroll_length, environment, state_size)


def random_unroll(spec: RunSpec, num_envs: int, rng: np.random.Generator) -> Unroll:
    unroll = empty_unroll(spec.environment, spec.unroll_length, spec.state_size, num_envs)
    observation = rng.integers(0, 255, unroll.observation.shape)
    unroll.observation[...] = observation.astype(unroll.observation.dtype)
    for name in ("reward", "final_value", "policy_logits", "baseline", "agent_state"):
        field = getattr(unroll, name)
        field[...] = rng.normal(size=field.shape)
    unroll.done[...] = rng.random(unroll.done.shape) < 0.3
    unroll.action[...] = rng.integers(0, spec.environment.num_actions, unroll.action.shape)
    unroll.initial_action[...] = 1
    return unroll


def make_batch(spec: RunSpec, size: int) -> Batch:
    arrays = empty_unroll(spec.environment, spec.unroll_length, spec.state_size, size)
    return Batch(Unroll(*(torch.from_numpy(array) for array in arrays)), arrays, [""] * size)
