"""A run's numbers for Weights & Biases (--with_wandb); the client is imported only then.

What goes there: the columns of ``metrics.csv`` over environment frames, the run's flags, the
host's name, load and installed packages. No code, no command line, no environment variables, no
console output, no addresses or keys. Who the user is, the client finds out by itself (``wandb
login``, or the environment); nothing of it is a flag here. WANDB_MODE=offline keeps everything on
this machine.
"""

import importlib.util
import logging
import os
import pathlib
import re
import secrets
from collections.abc import Mapping
from typing import Any

from impala_torch.flags.config import PER_PROCESS, Config, having, to_dict
from impala_torch.flags.errors import UserError

log = logging.getLogger(__name__)

VERSION = "0.30.0"  # as in tests/requirements.txt
_ID_FILE = "wandb_id.txt"
# Of the flags, what says nothing of the training but much of the network.
_KEPT_BACK = {*PER_PROCESS, *having(private=True)}
_TAG_LENGTH = 64  # W&B refuses longer ones
# What has not been sent by then, is kept in the run's directory for "wandb sync".
_FINISH_SECS = 120.0


def check(config: Config) -> None:
    """Whether a run can be logged there at all: asks nothing of the network.

    Raises:
      UserError: --with_wandb is set, and the client is not installed or has no account.
    """
    if not config.with_wandb:
        return
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # a mere folder 'wandb', of the client's files, is none
        raise UserError(
            f"--with_wandb needs Weights & Biases' client: 'pip install wandb=={VERSION}', where "
            "the (first) learner runs"
        )
    if long := [tag for tag in tags_of(config) if len(tag) > _TAG_LENGTH]:
        raise UserError(f"--wandb_tags: '{long[0]}' has more than {_TAG_LENGTH} characters")
    import wandb

    try:
        settings = wandb.setup().settings
        # Asked for here, a key would be waited for in a window that nobody looks at.
        if settings.mode == "online" and not wandb.login(prompt=False):
            raise UserError(
                "--with_wandb: no Weights & Biases account is known here: run 'wandb login' "
                "once, or set WANDB_MODE=offline to keep the numbers on this machine"
            )
    except wandb.Error as error:
        raise _refused(error) from error


def tags_of(config: Config) -> list[str]:
    return [tag.strip() for tag in config.wandb_tags.split(",") if tag.strip()]


class WandbLog:
    """A run there. Only rank 0 of the learner group has one."""

    def __init__(self, config: Config, logdir: pathlib.Path) -> None:
        """Begins the run, or goes on with that of the same ``logdir``.

        Args:
          config: the flags.
          logdir: the run's directory, which keeps the run's id and, unless WANDB_DIR names
            another place, the client's files.

        Raises:
          UserError: the client refuses, or cannot reach its server.
        """
        check(config)
        import wandb

        self._errors: tuple[type[Exception], ...] = (wandb.Error, OSError)
        flags = {name: value for name, value in to_dict(config).items() if name not in _KEPT_BACK}
        try:
            self._run = wandb.init(
                project=config.wandb_project,
                entity=config.wandb_user or None,
                group=config.wandb_group or config.level_name,
                job_type=config.wandb_job_type,
                tags=tags_of(config),
                name=f"{logdir.parent.name}/{logdir.name}",
                id=run_id(logdir),
                resume="allow",
                dir=os.environ.get("WANDB_DIR") or str(logdir),
                config=flags,
                allow_val_change=True,  # a run may go on with other flags
                save_code=False,
                settings=wandb.Settings(
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    disable_job_creation=True,
                    x_disable_meta=True,  # user, command line and paths
                    silent=True,  # what there is to say, is said below
                    finish_timeout=_FINISH_SECS,
                ),
            )
        except self._errors as error:
            raise _refused(error) from error
        self._run.define_metric("frames")
        self._run.define_metric("*", step_metric="frames")
        offline = self._run.offline
        where = f"{self._run.settings.sync_dir}, for 'wandb sync'" if offline else self._run.url
        log.info("Weights & Biases: %s", where)

    def write(self, row: Mapping[str, Any]) -> None:
        """Logs a row of ``RunLog.write``. Raises whatever the client does."""
        self._run.log({name: value for name, value in row.items() if value is not None})

    def close(self, *, failed: bool = False) -> None:
        """Sends what is left; ``failed`` is what the run is marked as."""
        try:
            self._run.finish(exit_code=int(failed))
        except self._errors as error:
            log.error("Weights & Biases could not end the run: %s", error)


def run_id(logdir: pathlib.Path) -> str:
    """The run's id there: made of the directory's name at the first start, and kept in it."""
    path = logdir / _ID_FILE
    if path.exists() and (known := path.read_text().strip()):
        return known
    # Directories of other places may have the same name: something of its own follows it.
    name = re.sub(r"[^\w.-]+", "-", logdir.name)[:80]
    made = f"{name}-{secrets.token_hex(4)}"
    path.write_text(made + "\n")
    return made


def _refused(error: Exception) -> UserError:
    return UserError(
        f"--with_wandb: Weights & Biases cannot begin the run: {error} (WANDB_MODE=offline keeps "
        "the numbers on this machine)"
    )
