"""Whether a run can start at all: agent, level and checkpoint, checked before anything is.

    python -m impala_torch.preflight FLAGS

The frontend runs it in a process of its own, since it loads torch and the frontend does not.
Prints one sentence and exits with 2 where something cannot work.
"""

import pathlib
import sys

from impala_torch import agents, checkpoint, environments
from impala_torch import config as config_lib
from impala_torch.config import Config, UserError


def check(config: Config) -> None:
    """Raises UserError for an agent, a level or a checkpoint that does not fit the others."""
    spec = environments.spec_for(config)
    agents.make_agent(config.agent_name, spec)
    logdir = pathlib.Path(config.logdir)
    state = checkpoint.restore(logdir) if config.logdir and logdir.is_dir() else None
    if state is not None:
        checkpoint.check_matches(state, config.agent_name, config.level_name)


def main(argv: list[str]) -> int:
    try:
        config_lib.define_flags()
        config_lib.parse_flags(argv)
        check(config_lib.from_flags())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
