"""IMPALA, one process of it: a learner, an actor, an evaluator, local training, or a test.

    python experiment.py --level_name=PongNoFrameskip-v4            trains on this machine
    python experiment.py --mode=test --logdir=logs/latest           plays whole games
    python experiment.py --mode=sample --level_name=...             only steps environments
    python experiment.py --job_name=learner --task=0 ...            one learner of a run
    python experiment.py --job_name=actor --task=0 ...              one of its actors
    python experiment.py --job_name=evaluator --logdir=... ...      whole games beside training

--helpfull explains every flag.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from impala_torch.flags import command_line, exit_codes
from impala_torch.flags.config import Config
from impala_torch.flags.errors import EnvironmentFault, UserError

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Runs what the flags say.

    Returns:
      The exit code, one of ``flags.exit_codes``.
    """
    try:
        config = parse(argv)
        _set_up_logging(config)
        return _run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.USERS_MISTAKE


def run_process(argv: list[str]) -> NoReturn:
    """``main``, and the end of this process."""
    code = main(argv)
    from impala_torch.machine import processes

    processes.leave(code)


def parse(argv: list[str]) -> Config:
    """Raises UserError for flags that are unknown or impossible."""
    command_line.define_flags()
    command_line.parse_flags(argv)
    return command_line.from_flags()


def _run(config: Config) -> int:
    # Arithmetic's threads sleep where they wait for each other, as they do where others want the
    # cores too: spinning, two of a learner's beside two actors take three times as long as one.
    # Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Imports wait for the flags: a mistake in them is told at once, and an actor loads no
    # Horovod and a frontend no torch.
    from impala_torch.environments import timeout
    from impala_torch.machine import processes

    processes.end_with_parent()
    processes.allow_many_files()
    timeout.limit(config.env_timeout)
    stop = processes.StopRequest()
    if config.mode not in ("test", "sample") and not _is_client(config):
        stop.install()
        return _learn(config, stop.requested)
    try:
        return _with_environments(config)
    except EnvironmentFault as error:
        error.tell(log)
        return exit_codes.FAILED
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _is_client(config: Config) -> bool:
    """Whether this process speaks to a learner's endpoint."""
    return config.job_name == "evaluator" or (config.job_name == "actor" and config.task >= 0)


def _with_environments(config: Config) -> int:
    """What plays: test mode, sampling, an actor, an evaluator."""
    if config.mode == "test":
        from impala_torch.evaluation import test_mode

        print(test_mode.run(config, command_line.given()))
        return exit_codes.FINISHED
    if config.mode == "sample":
        from impala_torch.measure import sample

        try:
            print(sample.run(config))
        except sample.Failed as error:
            print(f"error: {error}", file=sys.stderr)
            return exit_codes.FAILED
        return exit_codes.FINISHED
    if config.job_name == "actor":
        from impala_torch import actor

        return _as_client(actor.run, config)
    from impala_torch.evaluation import evaluator

    return _as_client(evaluator.run, config)


def _as_client(run: Callable[[Config], None], config: Config) -> int:
    """Runs what speaks to a learner's endpoint."""
    from impala_torch.endpoint.client import Banned, LearnerGone, Refused

    try:
        run(config)
    except Banned as error:
        log.error("%s", error)
        return exit_codes.FAILED
    except Refused as error:
        log.error("%s", error)
        return exit_codes.USERS_MISTAKE
    except LearnerGone as error:
        log.error("%s", error)
        return exit_codes.LEARNER_GONE
    return exit_codes.FINISHED


def _learn(config: Config, should_stop) -> int:
    from impala_torch import learner, local
    from impala_torch.learning import group
    from impala_torch.learning.finite import NotFinite
    from impala_torch.machine import cores, processes
    from impala_torch.report import rundir

    here = config.num_actors or cores.usable()
    processes.warn_of_few_files(here if config.task < 0 else len(config.actors))
    try:
        if config.task < 0:
            logdir = rundir.prepare(config)
            rundir.log_to(logdir / "workers" / "learner-0-0.log")
            log.info("logdir: %s", logdir)
            local.run(config, logdir, should_stop)
            return exit_codes.FINISHED
        return learner.run(config, group.join(config.stall_secs), should_stop)
    except NotFinite as error:
        log.error("error: %s", error)
        return exit_codes.NOT_FINITE
    except local.ActorsGone as error:
        log.error("error: %s", error)
        return exit_codes.FAILED
    except RuntimeError as error:
        log.exception("%s", error)
        return exit_codes.FAILED


def _set_up_logging(config: Config) -> None:
    who = "test" if config.mode == "test" else f"{config.job_name} {max(config.task, 0)}"
    logging.basicConfig(
        level=logging.INFO,
        format=f"[%(asctime)s {who}] %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    if config.quiet:  # on the screen; a run's own log files have handlers of their own
        logging.getLogger().handlers[0].setLevel(logging.WARNING)


if __name__ == "__main__":
    run_process(sys.argv)
