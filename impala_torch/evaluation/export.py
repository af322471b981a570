"""Takes a finished agent out of a run: its weights and flags, without the optimizer's state.

    python -m impala_torch.evaluation.export logs/latest pong.pt
    python experiment.py --mode=test --checkpoint=pong.pt

The file is a third of a checkpoint and enough to play with; training goes on from checkpoints.
"""

import argparse
import io
import pathlib
import sys

import torch

from impala_torch.flags.config import having
from impala_torch.flags.errors import UserError
from impala_torch.learning import checkpoint

_KEPT = ("model", "frames", "updates", "hours", "games", "version")
# What a reader needs to make the agent and its level; the rest tells of somebody's machine.
_FLAGS = having(exported=True)


def export(logdir: pathlib.Path, out: pathlib.Path) -> int:
    """Writes the newest checkpoint's agent.

    Args:
      logdir: of the run.
      out: the file to write.

    Returns:
      Its size in bytes.

    Raises:
      UserError: there is no checkpoint, or the file cannot be written.
    """
    state = checkpoint.restore(logdir) if logdir.is_dir() else None
    if state is None:
        raise UserError(f"{logdir} holds no checkpoint")
    kept = {name: state[name] for name in _KEPT}
    kept["config"] = {name: state["config"][name] for name in _FLAGS if name in state["config"]}
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    try:
        checkpoint.write_atomically(out, buffer.getbuffer())
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    return out.stat().st_size


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m impala_torch.evaluation.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("logdir", type=pathlib.Path, help="directory of the run")
    parser.add_argument("out", type=pathlib.Path, help="file to write")
    args = parser.parse_args()
    try:
        size = export(args.logdir, args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
