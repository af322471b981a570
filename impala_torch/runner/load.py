"""From --run to its RUN_DESCRIPTION: a module by its dotted name, or a file by its path."""

import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
import types

from impala_torch.flags.errors import UserError
from impala_torch.runner.description import RunDescription


def load(run: str) -> RunDescription:
    """The description that ``run`` names.

    Raises:
      UserError: there is no such module or file, it fails, or defines no RUN_DESCRIPTION.
    """
    try:
        module = _file(run) if run.endswith(".py") else importlib.import_module(run)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (run == error.name or run.startswith(f"{error.name}.")):
            raise UserError(
                f"--run={run}: there is no module '{error.name}' here; name a module as "
                "mypackage.myruns, or a file as path/to/myruns.py"
            ) from error
        raise UserError(f"--run={run}: {error}") from error
    except Exception as error:  # it is a program, and may fail in any way
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}"
        raise UserError(f"--run={run}: {type(error).__name__}: {error} ({where})") from error
    description = getattr(module, "RUN_DESCRIPTION", None)
    if description is None:
        raise UserError(f"--run={run} defines no RUN_DESCRIPTION; see sandbox/runner.md")
    if not isinstance(description, RunDescription):
        raise UserError(
            f"--run={run}: RUN_DESCRIPTION is a {type(description).__name__}, not a "
            "RunDescription of impala_torch.runner"
        )
    return description


def _file(path: str) -> types.ModuleType:
    if not os.path.isfile(path):
        raise UserError(f"--run={path}: there is no such file")
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--run={path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # As for a script, what lies beside the file can be imported by it.
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
