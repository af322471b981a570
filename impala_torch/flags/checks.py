"""What values of flags cannot work: one by one, and with each other. Each error names its flag.

Importing this module loads neither torch nor any environment.
"""

import dataclasses
import math
import os
from typing import Any

from impala_torch.flags.addresses import IPC, is_ipc, parse_address
from impala_torch.flags.config import Config, having
from impala_torch.flags.errors import UserError

MAX_SOCKET_PATH_BYTES = 100  # the kernel takes 107


def check_ranges(values: Any) -> None:
    """Raises UserError for a number outside the range that its flag's declaration states.

    Args:
      values: of a dataclass whose fields are made with ``flag``.
    """
    for field in dataclasses.fields(values):
        if type(field.default) in (int, float):
            _check_range(field, getattr(values, field.name))


def _check_range(field: dataclasses.Field[Any], value: float) -> None:
    name = field.name
    low, above, high = (field.metadata[end] for end in ("low", "above", "high"))
    # A whole number is finite, and may be more than a float can hold.
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{name} must be a finite number, not {value}")
    if above is not None and value <= above:
        raise UserError(f"--{name} must be more than {above}, not {value}")
    if high is not None and not low <= value <= high:
        raise UserError(f"--{name} must be between {low} and {high}, not {value}")
    if low is not None and value < low:
        if low == 0:
            raise UserError(f"--{name} must not be negative, and is {value}")
        means = field.metadata["low_means"]
        raise UserError(
            f"--{name} must be {low}{f' ({means})' if means else ''} or more, not {value}"
        )


def check(config: Config) -> None:
    """Raises UserError for values that cannot work, naming the flag."""
    check_ranges(config)
    if config.virtual_batch_size and config.total_batch_size:
        raise UserError(
            "--virtual_batch_size is of each learner, and --total_batch_size of all: give one"
        )
    if config.virtual_batch_size % config.batch_size:
        raise UserError(
            f"--virtual_batch_size={config.virtual_batch_size} is no multiple of "
            f"--batch_size={config.batch_size}"
        )
    several = config.batch_reuse > 1 or config.num_minibatches > 1
    if config.virtual_batch_size > config.batch_size and (several or config.algorithm == "appo"):
        raise UserError(
            "--batch_reuse, --num_minibatches and --algorithm=appo need a batch at hand, and "
            "--virtual_batch_size lets each go before its step: give one of them, or a larger "
            "--batch_size"
        )
    if config.batch_size % config.num_minibatches and not config.total_batch_size:
        raise UserError(
            f"--batch_size={config.batch_size} is no multiple of "
            f"--num_minibatches={config.num_minibatches}"
        )
    for field in dataclasses.fields(config):
        of = field.metadata["algorithm"]
        if of and of != config.algorithm and getattr(config, field.name) != field.default:
            raise UserError(f"--{field.name} is of --algorithm={of}, not {config.algorithm}")
    if is_ipc(config.learner_host):
        _check_ipc(config.learner_host, "--learner_host")
    else:
        parse_address(config.learner_host, "--learner_host")
    for address in config.actors:
        parse_address(address, "--actor_hosts")
    if config.relay:
        _check_ipc(config.relay, "--relay")
    _check_evaluation(config)
    if config.job_name == "actor":
        if config.task == -1:
            raise UserError(
                "--job_name=actor needs --task: the actor's place in --actor_hosts, from 0"
            )
        if config.task >= len(config.actors):
            raise UserError(
                f"--task={config.task} is outside --actor_hosts, which names "
                f"{len(config.actors)} actor(s): 0 to {len(config.actors) - 1}"
            )


def _check_ipc(address: str, flag: str) -> None:
    path = os.path.expanduser(address.removeprefix(IPC))
    if not is_ipc(address) or not path:
        raise UserError(f"{flag} must be ipc:// and a path, not '{address}'")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise UserError(f"{flag}={address}: a socket's path may have {MAX_SOCKET_PATH_BYTES} bytes")


def _check_evaluation(config: Config) -> None:
    if config.mode != "test":
        for name in having(mode="test"):
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"--{name} is of --mode=test")
    if config.checkpoint and config.levels:
        raise UserError("--checkpoint is of one level, and --levels finds them itself: give one")
    if config.record_margin and not (config.record or config.render):
        raise UserError("--record_margin needs --record or --render: it is under their pictures")
    if config.job_name == "evaluator":
        if not config.logdir:
            raise UserError("--job_name=evaluator needs --logdir: the directory for its results")
        if not config.eval_interval_frames:
            raise UserError("--job_name=evaluator needs --eval_interval_frames")
