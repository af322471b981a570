"""The evaluator: plays whole games beside training, every so many frames, with weights of its own.

It pulls them from a learner's endpoint, as an evaluator and not as an actor, and writes a row of
``evaluation.csv`` and TensorBoard events (in a folder of their own, since TensorBoard reads one
file of a folder). The learner's process starts it; one started by hand can run on any host.
"""

import logging
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import torch

from impala_torch import environments
from impala_torch.acting.player import make_acting_agent
from impala_torch.agents import Agent, weights
from impala_torch.endpoint import keys as curve
from impala_torch.endpoint import messages
from impala_torch.endpoint.client import EndpointClient, RunEnded
from impala_torch.endpoint.run_spec import run_spec_of
from impala_torch.evaluation import games, scorebook
from impala_torch.evaluation.games import Scores
from impala_torch.evaluation.scorebook import Trained
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.report.beside import Sink
from impala_torch.report.board import Board, scalar

log = logging.getLogger(__name__)

_NICE = 10  # whatever it shares the processor with goes first
_ASK_SECS = 1.0  # between questions for the learner's frames
_SHOWN = ("mean", "median", "std", "min", "max", "human_normalised")


def run(config: Config) -> None:
    """Evaluates every --eval_interval_frames until the learner at --learner_host says stop; then,
    where training has reached its last frame, the weights of the last checkpoint.

    Raises:
      UserError, client.Refused, client.LearnerGone: see there.
    """
    os.nice(_NICE)
    torch.set_num_threads(config.actor_threads or 1)
    agent, level = make_acting_agent(config), environments.level_of(config)
    spec = environments.environment_spec(level)
    client = EndpointClient(
        config.learner_host,
        run_spec_of(config, level, spec, agent.state_size),
        0,
        config.num_envs,
        keys=curve.for_address(config.learner_host, config.key_file),
        role=messages.EVALUATOR,
        timeout_secs=config.learner_timeout,
    )
    evaluator = Evaluator(config, agent)
    try:
        client.connect()
        evaluator.follow(client)
    except RunEnded:
        log.info("the learner says that the run has ended")
        evaluator.finish()
    finally:
        client.close()
        evaluator.close()


class Evaluator:
    """Evaluates one agent again and again as its weights change."""

    def __init__(self, config: Config, agent: Agent) -> None:
        """Raises UserError where --logdir cannot be written to."""
        self._config, self._agent = config, agent
        self._folder = pathlib.Path(config.logdir)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--logdir={config.logdir} cannot be made: {error.strerror}") from error
        scorebook.check_writable(self._folder, "--logdir")
        self._board = Board(self._folder / "evaluation")
        self._csv = Sink(f"{self._folder / scorebook.CSV}", self._to_csv)
        self._events = Sink(f"TensorBoard's file in {self._folder}", self._to_board)
        rows = [row for row in scorebook.rows(self._folder) if row["source"] == "training"]
        self._evaluated = int(rows[-1]["frames"]) if rows else 0  # frames behind the last weights

    @property
    def due(self) -> int:
        """Frames of training at which the next evaluation is due."""
        interval = self._config.eval_interval_frames
        return (self._evaluated // interval + 1) * interval

    def follow(self, client: EndpointClient) -> None:
        """Evaluates whenever it is due. Ends with RunEnded, or one of the client's errors."""
        while True:
            status = client.status()
            newer = client.pull(-1) if status.get("frames", 0) >= self.due else None
            if newer is None:
                time.sleep(_ASK_SECS)
                continue
            version, data = newer
            weights.unpack(self._agent, data, client.weights_dtype)
            self.evaluate(Trained(client.frames, version, status.get("hours", 0.0)))

    def finish(self) -> None:
        """Evaluates the last checkpoint, if training is complete and its weights are new."""
        state = checkpoint.restore(self._folder)
        complete = state is not None and state["frames"] >= self._config.total_environment_frames
        if state is None or not complete or state["frames"] <= self._evaluated:
            return
        self._agent.load_state_dict(state["model"])
        self.evaluate(Trained(state["frames"], state["updates"], state["hours"]))

    def evaluate(self, trained: Trained) -> None:
        """Plays with the weights of now, and writes what that scored."""
        config, started = self._config, time.monotonic()
        # The number of updates makes other games of each evaluation, and the same ones again.
        played = games.play(config, self._agent, stream=trained.updates % (1 << 32))
        scores, secs = Scores(config.level_name, played), time.monotonic() - started
        row = scorebook.row(config, trained, scores, secs, "training")
        self._csv(row)
        self._events(row)
        self._evaluated = trained.frames
        log.info("frames %s  %s  (%.0f s)", f"{trained.frames:,}", scores, secs)

    def _to_csv(self, row: Mapping[str, Any]) -> None:
        scorebook.append(self._folder, row)

    def _to_board(self, row: Mapping[str, Any]) -> None:
        prefix = f"{self._config.level_name}/evaluation_"
        shown = [scalar(prefix + name, row[name]) for name in _SHOWN if row[name] is not None]
        self._board.write(shown, row["frames"])

    def close(self) -> None:
        self._board.close()
