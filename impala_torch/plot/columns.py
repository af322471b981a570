"""One name for the same number of three programs: which column, or what of several, it is.

| here                               | TorchBeast                     | moolib                     |
| ---------------------------------- | ------------------------------ | -------------------------- |
| frames                             | step x repeats                 | env_train_steps x repeats  |
| updates                            | _tick + 1 (a row an update)    | optimizer_steps            |
| hours                              | _time since the first row,     | sum of steps / SPS         |
|                                    | without pauses                 |                            |
| episode_raw_return, episode_return | mean_episode_return            | mean_episode_return        |
| grad_norm                          | -                              | unclipped_grad_norm        |

moolib's vtrace example writes its columns with ``local/`` before them; its a2c example, with
``step`` for ``env_train_steps``. Every other name is that of a column in the file. A step of
both is an agent step; repeats is environment frames per agent step.
"""

from typing import NamedTuple

import numpy as np

from impala_torch.flags.errors import UserError
from impala_torch.plot.tables import IMPALA_TORCH, TORCHBEAST, Table

RETURN = "episode_raw_return"
_RETURNS = (RETURN, "episode_return", "mean_episode_return")
# Longer without a row than this and than so many usual intervals, a program was not running.
_PAUSE_SECS, _PAUSE_INTERVALS = 300.0, 20.0
_USUAL_REPEATS = 4  # TorchBeast wraps every game so; moolib unless told otherwise


class Column(NamedTuple):
    """Numbers by row, and what had to be supposed to have them."""

    values: np.ndarray  # float64 [N], NaN where there is none
    supposed: str = ""  # a sentence for the reader, or nothing


def column(table: Table, name: str, repeats: int = 0) -> Column:
    """What ``name`` is in the table.

    Args:
      table: N rows of one of the programs.
      name: ours, or that of a column in the file.
      repeats: environment frames per agent step of TorchBeast's and moolib's runs; 0 = the usual.

    Raises:
      UserError: the table has no such thing.
    """
    if table.program == IMPALA_TORCH:
        return Column(table.column(RETURN if name == "mean_episode_return" else name))
    if name in table.names:
        return Column(table.column(name))
    return (_torchbeast if table.program == TORCHBEAST else _moolib)(table, name, repeats)


def _torchbeast(table: Table, name: str, repeats: int) -> Column:
    if name == "frames":
        return Column(table.column("step") * (repeats or _USUAL_REPEATS))
    if name == "updates":
        return Column(table.column("_tick") + 1)
    if name == "hours":
        return _torchbeast_hours(table)
    if name == "time":
        return Column(table.column("_time"))
    return Column(table.column("mean_episode_return" if name in _RETURNS else name))


def _torchbeast_hours(table: Table) -> Column:
    """TorchBeast writes when each row was; a run that goes on later writes to the same file."""
    time = table.column("_time")
    known = np.isfinite(time)
    gaps = np.diff(time[known], prepend=time[known][:1])
    usual = float(np.median(gaps[1:])) if len(gaps) > 1 else 0.0
    paused = (gaps > max(_PAUSE_SECS, _PAUSE_INTERVALS * usual)) | (gaps < 0)
    hours = np.full(len(time), np.nan)
    hours[known] = np.cumsum(np.where(paused, usual, gaps)) / 3600
    if not paused.any():
        return Column(hours)
    longest = np.abs(gaps[paused]).max() / 3600
    return Column(
        hours,
        f"{table.path}: {int(paused.sum())} pause(s) between rows, the longest of {longest:,.1f} "
        "hours, are not counted as training",
    )


def _moolib(table: Table, name: str, repeats: int) -> Column:
    if name == "frames" and "step" in table.names:  # the a2c example: CartPole, repeating nothing
        return Column(table.column("step") * (repeats or 1))
    if name == "frames":
        supposed = (
            ""
            if repeats
            else (
                f"{table.path}: {_USUAL_REPEATS} frames a step are supposed, as there is no "
                "meta.json beside it; --repeats says otherwise"
            )
        )
        steps = table.column(_local(table, "env_train_steps"))
        return Column(steps * (repeats or _USUAL_REPEATS), supposed)
    if name == "hours":
        return Column(_moolib_hours(table))
    theirs = {"updates": "optimizer_steps", "grad_norm": "unclipped_grad_norm"}
    wanted = "mean_episode_return" if name in _RETURNS else theirs.get(name, name)
    return Column(table.column(_local(table, wanted)))


def _moolib_hours(table: Table) -> np.ndarray:
    """moolib writes no times, but steps and steps a second of each interval between rows."""
    if _local(table, "SPS") not in table.names:
        raise UserError(f"{table.path} holds no times: choose another --x than hours")
    steps = table.column(_local(table, "env_train_steps"))
    rate = table.column(_local(table, "SPS"))
    done = np.diff(steps, prepend=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        secs = np.where((rate > 0) & (done > 0), done / rate, np.nan)
    # Rows are written at a fixed interval: one without a step took as long as the others.
    usual = np.nanmedian(secs) if np.isfinite(secs).any() else 0.0
    return np.cumsum(np.where(np.isnan(secs), usual, secs)) / 3600


def _local(table: Table, name: str) -> str:
    prefixed = f"local/{name}"
    return prefixed if prefixed in table.names else name
