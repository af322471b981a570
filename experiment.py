"""IMPALA, one process of it: a learner, an actor, local training (both), or a test.

    python experiment.py --level_name=PongNoFrameskip-v4            trains on this machine
    python experiment.py --mode=test --logdir=logs/latest           plays whole games
    python experiment.py --job_name=learner --task=0 ...            one learner of a run
    python experiment.py --job_name=actor --task=0 ...              one of its actors

--helpfull explains every flag.
"""

import logging
import pathlib
import sys

from impala_torch import config as config_lib
from impala_torch.config import Config, UserError

log = logging.getLogger("experiment")


def main(argv: list[str]) -> int:
    """Runs what the flags say. Returns the exit code: 0, 1 for a failure, 2 for bad input."""
    try:
        config = parse(argv)
        _set_up_logging(config)
        return _run(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse(argv: list[str]) -> Config:
    """Raises UserError for flags that are unknown or impossible."""
    config_lib.define_flags()
    config_lib.parse_flags(argv)
    return config_lib.from_flags()


def _run(config: Config) -> int:
    # Imports wait for the flags: a mistake in them is told at once, and an actor loads no
    # Horovod and a frontend no torch.
    from impala_torch import processes

    processes.end_with_parent()
    stop = processes.StopRequest()
    if config.mode == "test":
        from impala_torch import evaluate

        print(evaluate.run(config, config_lib.given()))
        return 0
    if config.task >= 0 and config.job_name == "actor":
        return _act(config)
    stop.install()
    return _learn(config, stop.requested)


def _act(config: Config) -> int:
    from impala_torch import actor
    from impala_torch.endpoint.client import LearnerGone, Refused

    try:
        actor.run(config)
    except (LearnerGone, Refused) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _learn(config: Config, should_stop) -> int:
    from impala_torch import group, learner, local, rundir

    try:
        if config.task < 0:
            logdir = rundir.prepare(config)
            rundir.log_to(logdir / "workers" / "learner-0-0.log")
            log.info("logdir: %s", logdir)
            local.run(config, logdir, should_stop, program=str(pathlib.Path(__file__).absolute()))
            return 0
        return learner.run(config, group.join(), should_stop)
    except RuntimeError as error:
        log.exception("%s", error)
        return 1


def _set_up_logging(config: Config) -> None:
    who = "test" if config.mode == "test" else f"{config.job_name} {max(config.task, 0)}"
    logging.basicConfig(
        level=logging.INFO,
        format=f"[%(asctime)s {who}] %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
