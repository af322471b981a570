"""Whether a run can start at all: agent, level, directory and checkpoint, checked before anything
is.

    python -m impala_torch.preflight FLAGS

The frontend runs it in a process of its own, since it loads torch and the frontend does not.
Prints one sentence and exits with 2 where something cannot work.
"""

import pathlib
import sys

from impala_torch import agents, environments
from impala_torch.flags import command_line
from impala_torch.flags.config import Config
from impala_torch.learning import checkpoint
from impala_torch.report import rundir


def check(config: Config) -> None:
    """Raises UserError for an agent, a level or a checkpoint that does not fit the others, and for
    a directory that another run has."""
    if config.logdir:
        rundir.check_free(pathlib.Path(config.logdir))
    spec = environments.spec_for(config)
    agents.make_for(config, spec)
    logdir = pathlib.Path(config.logdir)
    state = checkpoint.restore(logdir) if config.logdir and logdir.is_dir() else None
    if state is not None:
        checkpoint.check_matches(state, config, "algorithm")


if __name__ == "__main__":
    sys.exit(command_line.main(sys.argv, check))
