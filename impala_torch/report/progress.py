"""What a learner has to tell, and when: the numbers of all ranks come together on rank 0."""

import dataclasses
import logging
import pathlib
import time
from typing import Any

import numpy as np
import torch

from impala_torch.endpoint.batches import Batch, BatchQueue
from impala_torch.endpoint.server import EndpointServer
from impala_torch.flags.addresses import parse_address
from impala_torch.flags.config import Config
from impala_torch.learning.group import Group
from impala_torch.learning.training_state import TrainingState
from impala_torch.machine import link_speed
from impala_torch.report import bottleneck, results
from impala_torch.report.bottleneck import Figures
from impala_torch.report.metrics import RunLog, progress_line
from impala_torch.report.wandb_log import WandbLog
from impala_torch.structures import EpisodeResult

log = logging.getLogger(__name__)

_BOUND_SECS = 10.0  # between words on where the run is bound


class Progress:
    """Collects between two lines of progress; every rank has one, rank 0's writes."""

    def __init__(
        self,
        config: Config,
        group: Group,
        state: TrainingState,
        endpoint: EndpointServer,
        batches: BatchQueue,
        logdir: pathlib.Path,
    ) -> None:
        self._config, self._group, self._state = config, group, state
        self._endpoint, self._batches, self._logdir = endpoint, batches, logdir
        self._log: RunLog | None = None
        self._wandb: WandbLog | None = None
        if group.rank == 0:
            self._log = RunLog(logdir, config.level_name, state.hours, state.games)
            self._wandb = WandbLog(config, logdir) if config.with_wandb else None
        now = time.monotonic()
        self._written = self._saved = now
        self._frames, self._updates = state.frames, state.updates
        self._waited = 0.0
        self._allreduce = group.allreduce_secs
        self._told_bound = now
        host, _ = parse_address(config.learner_host, "--learner_host")
        self._link = link_speed.link_bytes_per_sec(host)
        self._lags: list[float] = []
        self._actions = np.zeros(endpoint.spec.environment.num_actions, np.int64)
        self._metrics: dict[str, torch.Tensor] = {}
        self._norm: torch.Tensor | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self._log is not None:
            self._log.close()
        if self._wandb is not None:
            self._wandb.close(failed=failure is not None)

    def waiting(self) -> "_Stopwatch":
        """Context in which the learner waits for data."""
        return _Stopwatch(self)

    def add_wait(self, secs: float) -> None:
        self._waited += secs

    def stepped(self, metrics: dict[str, torch.Tensor], norm: torch.Tensor | None) -> None:
        """Takes in a step. Tensors stay where they are until somebody wants to read them."""
        self._metrics, self._norm = metrics, norm

    def learned_from(self, batch: Batch) -> None:
        """Takes in a batch."""
        arrays = batch.arrays
        self._lags.append(self._state.updates - 1 - float(arrays.weights_version.mean()))
        self._actions += np.bincount(arrays.action[:-1].ravel(), minlength=len(self._actions))

    def due(self) -> tuple[int, int]:
        """Whether it is time to log and to save."""
        now, config = time.monotonic(), self._config
        return (
            int(now - self._written >= config.progress_secs),
            int(now - self._saved >= config.save_checkpoint_secs),
        )

    def save(self) -> None:
        """Writes a checkpoint on rank 0. All ranks call it together."""
        self._saved = time.monotonic()
        if self._log is not None:
            self._state.hours, self._state.games = self._log.hours, self._log.games
            self._state.save(self._logdir, self._config)

    def end(self) -> None:
        """Writes the results card on rank 0, after the last checkpoint."""
        if self._log is not None:
            card = results.write(self._logdir, self._config)
            log.info("results (%s):", self._logdir / results.FILE)
            for line in results.lines(card):
                log.info("%s", line)

    def write(self, learning_rate: float) -> None:
        """Brings all ranks' numbers together and writes them. All ranks call it together."""
        state, endpoint, now = self._state, self._endpoint, time.monotonic()
        secs = max(now - self._written, 1e-6)
        episodes = [endpoint.episodes.popleft() for _ in range(len(endpoint.episodes))]
        waited = min(1.0, self._waited / secs)
        worked = max(secs - self._waited, 1e-6)
        allreduce = min(1.0, (self._group.allreduce_secs - self._allreduce) / worked)
        mine = {
            "episodes": [list(result) for result in episodes],
            "actions": self._actions.tolist(),
            "lag": sum(self._lags) / len(self._lags) if self._lags else 0.0,
            "queue": self._batches.depth,
            "waited": waited,
            "allreduce": allreduce,
            "actors": endpoint.num_connected,
            "figures": dataclasses.asdict(self._figures(waited, allreduce)),
        }
        everyone = self._group.gather(mine)
        row = {
            "frames": state.frames,
            "updates": state.updates,
            "frames_per_sec": (state.frames - self._frames) / secs,
            "updates_per_sec": (state.updates - self._updates) / secs,
            **{name: value.item() for name, value in self._metrics.items()},
            "grad_norm": None if self._norm is None else self._norm.item(),
            "learning_rate": learning_rate,
            "policy_lag": _mean_of(everyone, "lag"),
            "queue_batches": round(_mean_of(everyone, "queue"), 2),
            "batch_wait_share": _mean_of(everyone, "waited"),
            "allreduce_share": _mean_of(everyone, "allreduce"),
            "actors": sum(one["actors"] for one in everyone),
        }
        if self._log is not None:
            for one in everyone:
                results = (EpisodeResult(*values) for values in one["episodes"])
                self._log.episodes(results, state.frames)
            actions = np.sum([one["actions"] for one in everyone], axis=0)
            row = self._log.write(row, actions.tolist())
            if self._wandb is not None:
                self._wandb.write(row)
            log.info(progress_line(row, self._config.total_environment_frames))
        bound = bottleneck.diagnose([Figures(**one["figures"]) for one in everyone])
        if self._log is not None and now - self._told_bound >= _BOUND_SECS:
            log.info("%s", bound)
            self._told_bound = now
        endpoint.learner_status = {
            **row,
            "bound": bound,
            "total_environment_frames": self._config.total_environment_frames,
            "time": round(time.time(), 1),
        }
        self._written, self._waited = now, 0.0
        self._allreduce = self._group.allreduce_secs
        self._frames, self._updates = state.frames, state.updates
        self._lags.clear()
        self._actions[:] = 0

    def _figures(self, waited: float, allreduce: float) -> Figures:
        status = self._endpoint.status()
        here = [actor for actor in status["actors"] if actor["state"] != "gone"]
        shares = [actor["waiting_share"] for actor in here]
        return Figures(
            batch_wait_share=waited,
            allreduce_share=allreduce,
            actors_waiting_share=sum(shares) / len(shares) if shares else None,
            bytes_per_sec=status["bytes_per_sec"],
            link_bytes_per_sec=self._link,
            connected=len(here),
            expected=status["num_actors"],
        )


class _Stopwatch:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._progress.add_wait(time.monotonic() - self._start)


def _mean_of(everyone: list[dict[str, Any]], name: str) -> float:
    return sum(one[name] for one in everyone) / len(everyone)
