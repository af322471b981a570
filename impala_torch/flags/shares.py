"""What flags say of a run as a whole, shared out among its processes.

How much is in flight, and so how old data is when it is learned from, should not depend on how
many machines there happen to be: --total_num_envs and --total_batch_size are of all actors and all
learners together.

Importing this module loads neither torch nor any environment.
"""

from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError


def shared_out(config: Config, learners: int, actors: int | None, taken: int = 0) -> Config:
    """The flags as each process has them: --num_envs and --batch_size, and no totals.

    Shares are rounded up, so that no process has nothing to do.

    Args:
      config: the flags of a run.
      learners, actors: how many there are in all; None where nobody knows.
      taken: environments of further actors, which have a number of their own.

    Raises:
      UserError: --total_num_envs is given and nobody knows the number of actors.
    """
    if config.total_num_envs:
        if actors is None:
            raise UserError(
                f"--total_num_envs={config.total_num_envs} is shared out by what starts the whole "
                "run; a process that is started by itself needs --num_envs"
            )
        share = -(-(config.total_num_envs - taken) // max(1, actors))
        config = config.replace(num_envs=max(1, share), total_num_envs=0)
    if config.total_batch_size:
        parts = learners * config.num_minibatches
        share = -(-config.total_batch_size // parts) * config.num_minibatches
        config = config.replace(batch_size=share, total_batch_size=0)
    return config
