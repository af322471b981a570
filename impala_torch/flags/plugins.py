"""A user's own modules, named by a flag: ``--agent_name=mypackage.mymodule:MyAgent``.

A module is found where Python finds every other one, and last in the working directory: what is
installed cannot be hidden by a file that happens to lie there.
"""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from types import ModuleType

from impala_torch.flags.errors import UserError


def split(flag: str, value: str, form: str) -> tuple[str, str]:
    """Splits ``module:name``.

    Args:
      flag: the flag's name, for what is said of mistakes.
      value: the flag's value.
      form: what it should look like, such as ``mypackage.mymodule:MyAgent``.

    Raises:
      UserError: it is not of that form.
    """
    module, colon, name = value.partition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    if not colon or not dotted or not name or ":" in name:
        raise UserError(f"--{flag}={value} is not of the form {form}")
    return module, name


def import_module(flag: str, value: str) -> ModuleType:
    """Imports the module of ``value`` = ``module:name``, also from the working directory.

    Raises:
      UserError: there is no such module, or it fails while it is imported; the sentence then
        has the user's own line at which that was.
    """
    name = value.partition(":")[0]
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        with told(flag, value, "cannot be imported"):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--{flag}={value}: there is no module '{error.name}', neither in {here}, where this "
            f"process runs, nor installed for {sys.executable}: put it there, or install it"
        ) from error


@contextlib.contextmanager
def told(flag: str, value: str, what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turns what the user's code raises within the block into a sentence with its place.

    UserErrors pass, and so does the ModuleNotFoundError of the module that ``value`` names.

    Raises:
      UserError: of that ``kind``: '--flag=value what: file, line N: Error: message'.
    """
    module = value.partition(":")[0]
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        message = " ".join(said.split())  # one line, however long
        raise kind(
            f"--{flag}={value} {what}: {_place(error, module)}{type(error).__name__}: {message}"
        ) from error


def _place(error: BaseException, module: str) -> str:
    """'file, line N: ' of the last line that ran in the module's package; '' if none did."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: "
    package = module.partition(".")[0]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return f"{frame.f_code.co_filename}, line {line}: "
    return ""
