"""--runner=processes: experiments side by side on this machine."""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from impala_torch.flags.errors import UserError
from impala_torch.machine import processes
from impala_torch.runner import state
from impala_torch.runner.description import Task
from impala_torch.runner.display import Display
from impala_torch.runner.job import BUSY
from impala_torch.runner.state import Status

_POLL_SECS = 0.2
# A job ends its command by itself; this is for one that hangs.
_END_SECS = 180.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much may run at a time."""

    max_parallel: int
    pause_between: float = 1.0  # seconds
    num_gpus: int = 1
    experiments_per_gpu: int = -1  # -1: CUDA_VISIBLE_DEVICES is left as it is

    def devices(self, env: Mapping[str, str]) -> list[str]:
        """The GPUs to deal out, by what CUDA_VISIBLE_DEVICES calls them; none where it is left.

        Raises:
          UserError: a limit makes no sense, or there are fewer GPUs in CUDA_VISIBLE_DEVICES.
        """
        if self.max_parallel < 1:
            raise UserError(f"--max_parallel must be at least 1, not {self.max_parallel}")
        if self.pause_between < 0:
            raise UserError(f"--pause_between must not be negative, and is {self.pause_between}")
        if self.experiments_per_gpu <= 0:
            return []
        if self.num_gpus < 1:
            raise UserError(
                f"--experiments_per_gpu={self.experiments_per_gpu} needs --num_gpus of at least "
                f"1, not {self.num_gpus}"
            )
        said = env.get("CUDA_VISIBLE_DEVICES", "")
        visible = [one.strip() for one in said.split(",") if one.strip()]
        visible = visible or [str(number) for number in range(self.num_gpus)]
        if len(visible) < self.num_gpus:
            raise UserError(f"--num_gpus={self.num_gpus}, but CUDA_VISIBLE_DEVICES={said}")
        return visible[: self.num_gpus]


@dataclasses.dataclass(frozen=True)
class _Job:
    task: Task
    process: subprocess.Popen
    gpu: str  # empty: as the caller has it


class Pool:
    """Runs tasks until all have ended, or a signal stops them.

    Args:
      tasks: what to run, in order.
      limits: how much at a time.
      display: who is told.
    """

    def __init__(self, tasks: Sequence[Task], limits: Limits, display: Display) -> None:
        self._devices = limits.devices(os.environ)
        self._waiting, self._limits, self._display = list(tasks), limits, display
        self._running: list[_Job] = []
        self._signals = 0
        self._told = 0
        self._next_start = 0.0

    def run(self) -> int:
        """Runs them.

        Returns:
          The number of the signals that came; each experiment's state tells the rest.
        """
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            while self._running or (self._waiting and not self._signals):
                self._collect()
                self._pass_on()
                if not self._signals:
                    self._start_next()
                self._display.progress([job.task for job in self._running])
                time.sleep(_POLL_SECS)
        finally:
            for job in self._running:  # only where something went wrong here
                job.process.terminate()
            processes.end([job.process for job in self._running], _END_SECS)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._signals

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals += 1

    def _pass_on(self) -> None:
        """Tells all jobs to stop, or after a second signal to end at once."""
        while self._told < min(self._signals, 2):
            self._told += 1
            self._display.say(
                f"stopping {len(self._running)} experiment(s) after their checkpoints; once more "
                "ends them at once"
                if self._told == 1
                else "ending them at once"
            )
            for job in self._running:
                job.process.terminate()

    def _start_next(self) -> None:
        if not self._waiting or len(self._running) >= self._limits.max_parallel:
            return
        if time.monotonic() < self._next_start:
            return
        gpu = self._free_gpu()
        if gpu is None:
            return
        task = self._waiting.pop(0)
        if state.is_running(task.directory):
            self._display.say(f"left alone: {task.name}, which another runner has")
            return
        state.prepare(task, task.command)
        process = start(task, {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        self._running.append(_Job(task, process, gpu))
        self._display.say(f"started: {task.name}" + (f" on GPU {gpu}" if gpu else ""))
        self._next_start = time.monotonic() + self._limits.pause_between

    def _free_gpu(self) -> str | None:
        """The least busy GPU; None where all are full, empty where none are dealt."""
        if not self._devices:
            return ""
        used = [job.gpu for job in self._running]
        best = min(self._devices, key=used.count)
        return best if used.count(best) < self._limits.experiments_per_gpu else None

    def _collect(self) -> None:
        for job in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(job)
            if job.process.returncode == BUSY:
                self._display.say(f"left alone: {job.task.name}, which another runner has")
            else:
                self._display.ended(job.task, end_state(job.task, job.process.returncode))


def start(task: Task, env: Mapping[str, str]) -> subprocess.Popen:
    """Starts the job of a task whose directory is prepared."""
    args, given = [str(task.directory)], {**env, **task.env}
    return processes.spawn("impala_torch.runner.job", args, task.directory / state.LOG, given)


def end_state(task: Task, code: int) -> state.State:
    """What a job left; one that died without a word has failed with its exit code."""
    known = state.read(task.directory)
    if known.status in (Status.NEW, Status.RUNNING):
        known = dataclasses.replace(known, status=Status.FAILED, exit_code=code)
        state.write(task.directory, known)
    return known
