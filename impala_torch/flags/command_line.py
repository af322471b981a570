"""Flags on a command line <-> ``Config``: absl flags for its fields, parsed, read, written back.

``define_flags`` makes absl flags of the declaration in ``config``, ``from_flags`` reads and checks
them, ``to_argv`` writes them back (that is how the frontend, and local training, hand a run's
flags on), ``main`` is a program that takes them.

Importing this module loads neither torch nor any environment.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, cast

from absl import flags

from impala_torch.flags.checks import check
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError
from impala_torch.flags.presets import ALGORITHMS, PRESETS

# TorchBeast's names for the same things, for its users' fingers. Its --total_steps (agent steps,
# not frames) and --savedir (a directory of many runs) mean something else: no alias for them.
ALIASES = {
    "env": "level_name",
    "alpha": "decay",
    "grad_norm_clipping": "gradients_clipping",
}

_ALIAS_GROUP = "TorchBeast's names for the same"


def define_flags(flag_values: flags.FlagValues = flags.FLAGS, skip: tuple[str, ...] = ()) -> None:
    """Declares an absl flag for each field of ``Config`` not in ``skip``, and the aliases."""
    declare(Config, flag_values, skip)
    for alias, name in ALIASES.items():
        if name not in skip:
            flags.DEFINE_alias(alias, name, flag_values=flag_values, module_name=_ALIAS_GROUP)


def declare(cls: Any, flag_values: flags.FlagValues, skip: tuple[str, ...] = ()) -> None:
    """Declares an absl flag for each field (made with ``flag``) of a dataclass."""
    makers: dict[type, Any] = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        meta, default = field.metadata, cast(Any, field.default)
        # --helpfull prints flags by module: a module a group makes it read like a manual.
        options = {"flag_values": flag_values, "module_name": meta["group"]}
        if meta["choices"]:
            flags.DEFINE_enum(field.name, default, list(meta["choices"]), meta["help"], **options)
        else:
            makers[type(default)](field.name, default, meta["help"], **options)


def parse_flags(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses a command line (with the program's name first); --help and --helpfull exit.

    Raises:
      UserError: an unknown flag, a bad value, or an argument that is no flag.
    """
    asked = {word.lstrip("-") for word in argv[1:] if word.startswith("-")}
    if asked & {"h", "help", "helpfull"}:
        print((getattr(sys.modules["__main__"], "__doc__", None) or "").strip())
        if "helpfull" in asked:
            print(manual(flag_values))
        raise SystemExit(0)
    try:
        rest = flag_values(argv)
    except (flags.Error, ValueError) as error:
        raise UserError(str(error)) from error
    if len(rest) > 1:
        raise UserError(f"'{rest[1]}' is not a flag; flags are written --name=value")


def manual(flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """What --helpfull prints: every flag with its help and default, a chapter for each group."""
    chapters = [name for name in flag_values.flags_by_module_dict() if name != "absl.flags"]
    return "\n".join(flag_values.module_help(chapter) for chapter in chapters)


def given(flag_values: flags.FlagValues = flags.FLAGS) -> frozenset[str]:
    """Names of the flags that the command line set."""
    names = {field.name for field in dataclasses.fields(Config)} & set(flag_values)
    return frozenset(name for name in names if flag_values[name].present)


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Config:
    """Reads the parsed flags. Raises UserError where values are impossible."""
    names = [field.name for field in dataclasses.fields(Config)]
    known: dict[str, Any] = {name: flag_values[name].value for name in names if name in flag_values}
    present = given(flag_values)
    if known.get("config"):
        if "preset" in present:
            raise UserError("--config and --preset both choose the flags: give one of them")
        values = _read(known["config"])
        theirs = values.get("algorithm", Config.algorithm)
        if "algorithm" in present and known["algorithm"] != theirs:
            raise UserError(f"--config={known['config']} is of --algorithm={theirs}: leave one")
    else:
        preset = PRESETS[known.get("preset", "none")]
        chosen = known.get("algorithm", Config.algorithm)
        of_preset = preset.get("algorithm", chosen)
        if "algorithm" in present and chosen != of_preset:
            raise UserError(f"--preset={known['preset']} is of --algorithm={of_preset}: leave one")
        chosen = of_preset
        values = {**ALGORITHMS[chosen], **preset}
    for total, each in (("total_num_envs", "num_envs"), ("total_batch_size", "batch_size")):
        if each in present and total not in present:
            values = {**values, total: 0}
        elif each in present and known[total]:
            raise UserError(f"--{total} is shared out as --{each}: give one of them")
    known |= {name: value for name, value in values.items() if name not in present}
    # What the file said is in the flags now; processes of the run need not have the file.
    config = Config(**{**known, "config": ""})
    check(config)
    return config


def _read(path: str) -> dict[str, Any]:
    """The flags of a run's config.json, but those of one process and its place."""
    try:
        flag_dict = json.loads(pathlib.Path(path).read_text())["flags"]
        found = {field.name: flag_dict.get(field.name) for field in dataclasses.fields(Config)}
    except OSError as error:
        raise UserError(f"--config={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--config={path} is not the config.json of a run: it needs a map 'flags'"
        ) from error
    values = {}
    for field in dataclasses.fields(Config):
        value, default = found[field.name], cast(Any, field.default)
        if value is None or not field.metadata["inherited"]:
            continue
        if type(value) is int and type(default) is float:
            value = float(value)
        choices = field.metadata["choices"]
        if type(value) is not type(default) or (choices and value not in choices):
            raise UserError(f"--config={path}: its {field.name} is {value!r}, which is no value")
        values[field.name] = value
    return values


def to_argv(config: Config, only_changed: bool = True, **overrides: Any) -> list[str]:
    """The flags of ``config`` as a command line; ``experiment.py`` reads it back to the same."""
    changed = config.replace(**overrides)
    # What the reader would choose otherwise where it is not given.
    chosen = {*overrides, *PRESETS[changed.preset], *ALGORITHMS[changed.algorithm]}
    argv = []
    for field in dataclasses.fields(Config):
        value = getattr(changed, field.name)
        needed = field.name in chosen
        if only_changed and value == field.default and not needed:
            continue
        if isinstance(value, bool):
            argv.append(f"--{field.name}" if value else f"--no{field.name}")
        else:
            argv.append(f"--{field.name}={value}")
    return argv


def main(argv: list[str], program: Callable[[Config], None]) -> int:
    """Runs what takes the flags of training. Returns the exit code: 2 for a user's mistake."""
    try:
        define_flags()
        parse_flags(argv)
        program(from_flags())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
