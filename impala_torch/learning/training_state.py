"""What a run would lose if it stopped: weights, optimizer state and counts."""

import logging
import pathlib
from collections.abc import Mapping

import torch

from impala_torch import __version__
from impala_torch.flags.config import Config, to_dict
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.learning.group import Group

log = logging.getLogger(__name__)


class TrainingState:
    """An agent, its optimizer, and how far they have come; the same on every rank."""

    def __init__(
        self,
        agent: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        kept: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """
        Args:
          agent: what is trained.
          optimizer: with its state made already.
          kept: what the algorithm keeps beside them, by name.
        """
        self.agent = agent
        self.optimizer = optimizer
        self.kept = dict(kept or {})
        self.updates = 0
        self.frames = 0  # environment frames, over all learners
        self.hours = 0.0  # of training, over all starts; kept on rank 0
        self.games = 0  # whole games finished; kept on rank 0

    def save(self, logdir: pathlib.Path, config: Config) -> None:
        """Writes a checkpoint; for rank 0 to call."""
        content = {
            "model": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "algorithm": self.kept,
            "frames": self.frames,
            "updates": self.updates,
            "hours": self.hours,
            "games": self.games,
            "config": dict(to_dict(config)),
            "version": __version__,
        }
        path = checkpoint.save(logdir, self.frames, content, config.keep_checkpoints)
        log.info("checkpoint: %s", path)

    def is_finite(self) -> bool:
        """Whether the weights are numbers."""
        tensors = self.agent.state_dict().values()
        return all(bool(torch.isfinite(one).all()) for one in tensors if one.is_floating_point())

    def restore(self, logdir: pathlib.Path, config: Config, group: Group) -> None:
        """Rank 0 reads the newest checkpoint, if any; the others get what it has.

        Raises:
          UserError: on every rank, where the checkpoint cannot be read or does not fit.
        """
        problem = ""
        if group.rank == 0:
            try:
                self._load(logdir, config)
            except UserError as error:
                problem = str(error)
        self.updates, self.frames, problem = group.gather([self.updates, self.frames, problem])[0]
        if problem:
            raise UserError(problem)
        entries = self.optimizer.state_dict()["state"].values()
        moments = [tensor for entry in entries for tensor in entry.values()]
        with torch.no_grad():
            group.broadcast([*self.agent.state_dict().values(), *moments, *self.kept.values()])

    def _load(self, logdir: pathlib.Path, config: Config) -> None:
        content = checkpoint.restore(logdir)
        if content is None:
            return
        checkpoint.check_matches(content, config, "algorithm")
        try:
            self.agent.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            kept = content.get("algorithm", {})
            for name, tensor in self.kept.items():
                if name in kept:  # else it is of a flag that the run had not, and as at a start
                    tensor.copy_(kept[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint in --logdir={logdir} does not fit this agent or level "
                f"(other --width, --height or code?): {error}"
            ) from error
        for name in ("updates", "frames", "hours", "games"):
            setattr(self, name, content[name])
        log.info("going on from %s frames, %d updates", f"{self.frames:,}", self.updates)
