"""Test mode: plays whole games with runs' checkpoints, tells what they scored, writes it down."""

import contextlib
import logging
import pathlib
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch

from impala_torch import agents
from impala_torch.acting.player import make_acting_agent
from impala_torch.evaluation import games, scorebook
from impala_torch.evaluation.games import Game, Scores
from impala_torch.evaluation.run_finder import find_runs
from impala_torch.evaluation.scorebook import Trained
from impala_torch.flags.config import Config, having
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint
from impala_torch.report.metrics import duration

log = logging.getLogger(__name__)

# What a checkpoint's weights mean something with.
_OF_THE_RUN = having(of_agent=True)


class Subject(NamedTuple):
    """An agent to be tested."""

    config: Config  # the flags, with those of the run where they are its own
    folder: pathlib.Path  # for the results
    agent: agents.Agent
    trained: Trained
    checkpoint: str  # the file's name


def run(config: Config, given: Collection[str] = ()) -> str:
    """Plays --test_num_episodes whole games with a run's checkpoint, or each of several runs'.

    Args:
      config: the flags.
      given: those that the user set; agent and level are otherwise the checkpoint's.

    Returns:
      What to print.

    Raises:
      UserError: no checkpoint, one of another agent or level, or a folder or window cannot be had.
    """
    # More would wait for each other where a training runs beside them, at six times the work.
    torch.set_num_threads(config.actor_threads or 1)
    if config.levels:
        return _run_levels(config, given)
    subject = _subject(config, given)
    scorebook.check_writable(subject.folder, "--logdir")
    scores, _ = evaluate(subject)
    return str(scores)


def evaluate(subject: Subject) -> tuple[Scores, dict[str, Any]]:
    """Plays, and writes evaluation.json and a row of evaluation.csv in the subject's folder.

    Returns:
      The scores, and what evaluation.json holds.
    """
    config, trained = subject.config, subject.trained
    log.info("%s on %s, %s frames", config.agent_name, config.level_name, f"{trained.frames:,}")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        teller = _Teller(config)
        played = games.play(
            config,
            subject.agent,
            on_game=teller.game,
            on_step=teller.step,
            spectators=list(_spectators(config, trained, stack)),
        )
    if not played:
        raise UserError("the window was closed before a game had ended: there is nothing to tell")
    scores, secs = Scores(config.level_name, played), time.monotonic() - started
    card = scorebook.card(config, trained, scores, secs, subject.checkpoint)
    scorebook.append(subject.folder, scorebook.row(config, trained, scores, secs, "test"))
    scorebook.write_card(subject.folder, card)
    log.info("written: %s and %s", subject.folder / scorebook.JSON, scorebook.CSV)
    return scores, card


def _run_levels(config: Config, given: Collection[str]) -> str:
    """--levels: every level with its run, then all of them together."""
    if "level_name" in given:
        raise UserError("--levels names the levels to test: leave --level_name out")
    root = _directory(config)
    found, missing = find_runs(root, config.levels)
    subjects = [_subject(config.replace(logdir=str(folder)), given) for folder in found.values()]
    for folder in (root, *found.values()):
        scorebook.check_writable(folder, "--logdir")
    all_scores, cards, lines = [], [], []
    for subject in subjects:
        scores, card = evaluate(subject)
        all_scores.append(scores)
        cards.append({"logdir": str(subject.folder), **card})
        lines.append(f"{scores.level_name}: {scores}  frames {subject.trained.frames:,}")
    together = games.over_levels(all_scores)
    scorebook.write_card(root, {**together, "missing": missing, "evaluations": cards})
    if missing:
        lines.append(f"no run of {len(missing)} of the 57 games: {', '.join(missing)}")
    if together["levels"]:
        lines.append(
            f"human-normalised over {together['levels']} game(s): median "
            f"{together['median_human_normalised']:.3f}  mean "
            f"{together['mean_human_normalised']:.3f}"
        )
    return "\n".join(lines)


def _directory(config: Config) -> pathlib.Path:
    if not config.logdir:
        raise UserError("--mode=test needs --logdir: the directory of the run to test")
    logdir = pathlib.Path(config.logdir)
    if not logdir.is_dir():
        raise UserError(f"--logdir={config.logdir} is not a directory")
    return logdir


def _subject(config: Config, given: Collection[str]) -> Subject:
    folder, name, state = _checkpoint(config)
    trained = {
        name: state["config"][name]
        for name in _OF_THE_RUN
        if name not in given and name in state["config"]
    }
    config = config.replace(**trained)
    checkpoint.check_matches(state, config)
    agent = make_acting_agent(config)
    try:
        agent.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(f"the checkpoint {folder / name} does not fit: {error}") from error
    counts = Trained(state["frames"], state.get("updates", 0), state.get("hours", 0.0))
    return Subject(config, folder, agent, counts, name)


def _checkpoint(config: Config) -> tuple[pathlib.Path, str, dict[str, Any]]:
    """The folder for results, the checkpoint's file name and its state."""
    if config.checkpoint:
        path = pathlib.Path(config.checkpoint)
        folder = _directory(config) if config.logdir else path.parent
        return folder, path.name, checkpoint.load(path)
    logdir = _directory(config)
    state = checkpoint.restore(logdir)
    if state is None:
        raise UserError(f"--logdir={config.logdir} holds no checkpoint yet")
    return logdir, checkpoint.name_of(state["frames"]), state


def _spectators(
    config: Config, trained: Trained, stack: contextlib.ExitStack
) -> Iterator[games.Spectator]:
    """Who watches, by the flags; closed with ``stack``."""
    try:  # what draws is only imported where it is wanted
        if config.render:
            from impala_torch.evaluation.window import Window

            yield stack.enter_context(Window(config))
        if config.record:
            from impala_torch.evaluation.recording import Recorder

            yield stack.enter_context(Recorder(config, trained.frames))
    except ModuleNotFoundError as error:
        raise UserError(
            f"--record and --render need the package '{error.name}', which is not installed: "
            "'pip install -r requirements.txt' brings it"
        ) from error


class _Teller:
    """Tells of games as they end and, on a terminal, how fast it goes."""

    def __init__(self, config: Config) -> None:
        self._games, self._every = config.test_num_episodes, config.progress_secs
        self._started = self._told = time.monotonic()
        self._done = self._steps = 0
        self._shown = sys.stderr.isatty()

    def game(self, game: Game) -> None:
        self._done += 1
        words = "game %d of %d: score %g in %s frames"
        log.info(words, self._done, self._games, game.score, f"{game.frames:,}")

    def step(self, num_envs: int) -> None:
        self._steps += num_envs
        now = time.monotonic()
        if self._shown and now - self._told > self._every:
            self._told = now
            secs = now - self._started
            left = duration(secs / self._done * (self._games - self._done)) if self._done else "?"
            log.info(
                "%d of %d games, %s agent steps/s, left %s",
                *(self._done, self._games, f"{self._steps / secs:,.0f}", left),
            )
