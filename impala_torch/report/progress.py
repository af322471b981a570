"""What a run tells, and when: all ranks' numbers come together, and rank 0 writes them down."""

import dataclasses
import logging
import pathlib
import time
from typing import Any

from impala_torch.endpoint.server import EndpointServer
from impala_torch.flags.addresses import host_of
from impala_torch.flags.config import Config
from impala_torch.learning.finite import NotFinite
from impala_torch.learning.group import Group
from impala_torch.learning.training_state import TrainingState
from impala_torch.machine import link_speed
from impala_torch.report import bottleneck, results, together
from impala_torch.report.beside import why
from impala_torch.report.bottleneck import Figures
from impala_torch.report.metrics import RunLog, progress_line
from impala_torch.report.tally import Tally
from impala_torch.report.wandb_log import WandbLog

log = logging.getLogger(__name__)

_BOUND_SECS = 10.0  # between words on where the run is bound
_SAVE_AGAIN_SECS = 60.0  # after a checkpoint that could not be written
_FIRST_SAVE_SECS = 60.0  # a run that dies early should not have to begin anew


class Progress:
    """Gathers what ranks have added up and heard of; every rank has one, rank 0's writes."""

    def __init__(
        self,
        config: Config,
        group: Group,
        state: TrainingState,
        endpoint: EndpointServer,
        logdir: pathlib.Path,
        reduction: str,
    ) -> None:
        """
        Args:
          config: the flags.
          group: the learners.
          state: of the training.
          endpoint: this learner's; shows the numbers too.
          logdir: the run's directory.
          reduction: how the ranks' gradients become one.
        """
        self._config, self._group, self._state = config, group, state
        self._endpoint, self._logdir, self._reduction = endpoint, logdir, reduction
        self.tally = Tally(endpoint.spec.environment.num_actions)
        self._log: RunLog | None = None
        self._wandb: WandbLog | None = None
        if group.rank == 0:
            self._wandb = WandbLog(config, logdir) if config.with_wandb else None
            also = {"Weights & Biases": self._wandb.write} if self._wandb else {}
            self._log = RunLog(
                logdir, config.level_name, state.hours, state.games, state.frames, also
            )
        now = time.monotonic()
        self._written = self._told_bound = now
        self._save_at = now + min(_FIRST_SAVE_SECS, config.save_checkpoint_secs)
        self._saved_frames = state.frames
        self._unsaved = ""  # why the last checkpoint could not be written
        self._frames, self._updates = state.frames, state.updates
        self._allreduce = group.allreduce_secs
        self._received = 0  # unrolls, from other learners
        host = host_of(config.learner_host, "--learner_host")
        self._link = link_speed.link_bytes_per_sec(host)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self._log is not None:
            self._log.close()
        if self._wandb is not None:
            self._wandb.close(failed=failure is not None)

    def due(self) -> tuple[int, int]:
        """Whether it is time to log and to save."""
        now, config = time.monotonic(), self._config
        return (
            int(now - self._written >= config.progress_secs),
            int(now >= self._save_at and self._state.frames > self._saved_frames),
        )

    def save(self) -> bool:
        """Writes a checkpoint on rank 0; whether that is done. Ranks may call it together or not.

        A disk that is full costs no training: the checkpoints of before stay as they are, and a new
        one is tried again soon.
        """
        secs, self._unsaved = self._config.save_checkpoint_secs, ""
        if self._log is not None:
            self._state.hours, self._state.games = self._log.hours, self._log.games
            try:
                self._state.save(self._logdir, self._config)
            except OSError as error:
                secs = min(secs, _SAVE_AGAIN_SECS)
                self._unsaved = f"no checkpoint can be written to {self._logdir}: {why(error)}"
                log.error("%s; the one before stays, and it is tried again", self._unsaved)
        if not self._unsaved:
            self._saved_frames = self._state.frames
        self._save_at = time.monotonic() + secs
        return not self._unsaved

    def save_last(self) -> None:
        """``save`` where training ends.

        Raises:
          RuntimeError: it could not be written.
        """
        if not self.save():
            raise RuntimeError(f"training since the checkpoint before is lost: {self._unsaved}")

    def rescue(self) -> None:
        """``save`` after an error that ends training, which must not be hidden by another one."""
        if self._log is None:
            return
        try:
            self.save()
        except NotFinite as error:
            log.error("%s", error)
        except Exception:
            log.exception("no last checkpoint could be written")

    def end(self) -> None:
        """Writes the results card on rank 0, after the last checkpoint."""
        if self._log is None:
            return
        self._log.flush()
        try:
            counts = {name: getattr(self._state, name) for name in results.COUNTS}
            card = results.write(self._logdir, self._config, counts)
        except OSError as error:
            log.error("no results can be written to %s: %s", self._logdir, why(error))
            return
        log.info("results (%s):", self._logdir / results.FILE)
        for line in results.lines(card):
            log.info("%s", line)

    def write(self, learning_rate: float) -> None:
        """Brings all ranks' numbers together and writes them. All ranks call it together."""
        now = time.monotonic()
        secs = max(now - self._written, 1e-6)
        everyone = self._group.gather(self._collect(secs))
        row = self._row(everyone, secs, learning_rate)
        bound = bottleneck.diagnose([Figures(**one["figures"]) for one in everyone])
        if self._log is not None:
            self._log.episodes(together.episodes_of([one["episodes"] for one in everyone]))
            row = self._log.write(row, together.actions_of(everyone))
            log.info(progress_line(row, self._config.total_environment_frames))
            if now - self._told_bound >= _BOUND_SECS:
                log.info("%s", bound)
                self._told_bound = now
        self._endpoint.learner_status = {
            **row,
            "bound": bound,
            "unwritten": self._unwritten(),
            "total_environment_frames": self._config.total_environment_frames,
            "time": round(time.time(), 1),
            "interval_secs": round(max(secs, self._config.progress_secs), 1),
        }
        self._written = now
        self._frames, self._updates = self._state.frames, self._state.updates

    def _unwritten(self) -> list[str]:
        """What cannot be written at the moment, in sentences, the worst first."""
        telemetry = [] if self._log is None else self._log.troubles
        return [self._unsaved, *telemetry] if self._unsaved else telemetry

    def _collect(self, secs: float) -> dict[str, Any]:
        """This rank's numbers over the last ``secs``, ready for JSON."""
        tally, status = self.tally.take(), self._endpoint.status()
        waited = min(1.0, tally["waited"] / secs)
        worked = max(secs - tally["waited"], 1e-6)
        allreduce = min(1.0, (self._group.allreduce_secs - self._allreduce) / worked)
        received = status["received_unrolls"] - self._received
        learned = tally["batches"] * self._config.batch_size
        self._allreduce = self._group.allreduce_secs
        self._received = status["received_unrolls"]
        return {
            **tally,
            "episodes": [
                (updates, list(result)) for updates, result in self._endpoint.take_episodes()
            ],
            "queue": status["queue_batches"],
            "waited": waited,
            "allreduce": allreduce,
            "actors": self._endpoint.num_connected,
            "received": received / learned if learned else None,
            "figures": dataclasses.asdict(self._figures(status, waited, allreduce)),
        }

    def _row(
        self, everyone: list[dict[str, Any]], secs: float, learning_rate: float
    ) -> dict[str, Any]:
        state = self._state
        return {
            "frames": state.frames,
            "updates": state.updates,
            "frames_per_sec": (state.frames - self._frames) / secs,
            "updates_per_sec": (state.updates - self._updates) / secs,
            **together.metrics_of(everyone, self._reduction),
            "learning_rate": learning_rate,
            "policy_lag": together.mean_of(everyone, "lag"),
            "queue_batches": round(together.mean_of(everyone, "queue") or 0.0, 2),
            "batch_wait_share": together.mean_of(everyone, "waited"),
            "allreduce_share": together.mean_of(everyone, "allreduce"),
            "actors": sum(one["actors"] for one in everyone),
            "shared_share": together.mean_of(everyone, "received"),
            "skipped_updates": state.skipped,
        }

    def _figures(self, status: dict[str, Any], waited: float, allreduce: float) -> Figures:
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
