"""TensorBoard on the runs whose names match.

    python -m impala_torch.tb 'Pong*' '*lr=0.001*'      those runs of logs/
    python -m impala_torch.tb --logs=train_dir          all runs of another folder

A run's name is its path below the folder; a pattern matches it whole or any part of it between
slashes. Ctrl-C ends TensorBoard too.
"""

import argparse
import fnmatch
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from impala_torch.flags.errors import UserError

_EVENTS = "events.out.tfevents."
_SHOWN = 20  # runs named in an error


def runs(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders below ``root`` that hold TensorBoard's files, by name.

    Raises:
      UserError: there are none.
    """
    found = {}
    for folder, folders, files in os.walk(root):  # not into links: logs/latest is a run again
        folders.sort()
        if any(name.startswith(_EVENTS) for name in files):
            path = pathlib.Path(folder)
            found[path.relative_to(root).as_posix()] = path
    if not found:
        raise UserError(f"--logs={root} holds no run that TensorBoard could show")
    return found


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that a pattern means; all of them where there is no pattern.

    Raises:
      UserError: a pattern means none.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns or ["*"]:
        found = [name for name in names if _matches(name, pattern)]
        if not found:
            some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise UserError(f"'{pattern}' matches no run; there are: {some}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(part, pattern) for part in (name, *name.split("/")))


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="python -m impala_torch.tb",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("patterns", nargs="*", metavar="PATTERN", help="all runs if there is none")
    made.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("logs"), metavar="DIR")
    made.add_argument("--port", type=int, default=6006)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Shows them until Ctrl-C. Returns the exit code: TensorBoard's, or 2 for bad input."""
    args = parser().parse_args(argv)
    try:
        found = runs(args.logs)
        names = matching(list(found), args.patterns)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(names)} run(s): {', '.join(names[:_SHOWN])}", flush=True)
    return _show({name: found[name] for name in names}, args.port)


def _show(chosen: dict[str, pathlib.Path], port: int) -> int:
    # TensorBoard shows a folder; links in one of our own make it show these runs and no others.
    with tempfile.TemporaryDirectory(prefix="impala_torch-tb-") as folder:
        for name, path in chosen.items():
            link = pathlib.Path(folder) / name.replace("/", "_")
            link.symlink_to(path.absolute(), target_is_directory=True)
        command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}"]
        process = subprocess.Popen([*command, f"--port={port}"])
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            process.terminate()  # a terminal's Ctrl-C has reached it already
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
