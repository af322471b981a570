"""What a run's description file is made of; names and arguments are Sample Factory's.

    from impala_torch.runner import Experiment, ParamGrid, RunDescription

    _seeds = ParamGrid([("seed", [1, 2, 3, 4])])
    _cartpole = Experiment("cartpole", "python experiment.py --level_name=CartPole-v1", _seeds)
    RUN_DESCRIPTION = RunDescription("cartpole_seeds", experiments=[_cartpole])

An order that is shuffled is the same in every call: an experiment's number is part of its name,
and by its name a second call knows what has been done.
"""

import abc
import dataclasses
import itertools
import pathlib
import random
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from impala_torch.flags.errors import UserError

_MAX_NAME = 120  # characters of an experiment's name; file systems take 255 bytes

Params = Mapping[str, Any]


class ParamGenerator(abc.ABC):
    """Yields combinations of parameters; a base for one's own."""

    @abc.abstractmethod
    def generate_params(self, randomize: bool = False, seed: int = 0) -> Iterator[dict[str, Any]]:
        """The combinations; ``seed`` orders them where ``randomize`` asks for it."""


class ParamList(ParamGenerator):
    """Combinations one by one: ``ParamList([{"seed": 1, "decay": 0.9}, ...])``."""

    def __init__(self, combinations: Iterable[Params]) -> None:
        self.combinations = [dict(one) for one in combinations]

    def generate_params(self, randomize: bool = True, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Yields each combination once; shuffled by ``seed`` with ``randomize``."""
        yield from _shuffled(self.combinations, seed) if randomize else self.combinations


class ParamGrid(ParamGenerator):
    """Every combination of values: ``ParamGrid([("seed", [1, 2]), ("decay", [0.9, 0.99])])``.

    The first parameter varies slowest. Parameters that vary together are a tuple, and so are their
    values: ``(("level_name", "num_envs"), [("CartPole-v1", 8), ("Acrobot-v1", 16)])``.
    """

    def __init__(self, grid_tuples: Iterable[tuple[str | Sequence[str], Sequence[Any]]]) -> None:
        self.grid = [
            ((names,) if isinstance(names, str) else tuple(names), list(values))
            for names, values in grid_tuples
        ]
        self._check()

    def _check(self) -> None:
        seen: set[str] = set()
        for names, values in self.grid:
            if again := seen & set(names):
                raise UserError(f"ParamGrid has the parameter '{min(again)}' twice")
            seen |= set(names)
            if not values:
                raise UserError(f"ParamGrid has no values for '{', '.join(names)}'")
            for value in values if len(names) > 1 else ():
                if isinstance(value, str) or len(value) != len(names):
                    raise UserError(f"ParamGrid: {value!r} is not a value for each of {names}")

    def generate_params(self, randomize: bool = False, seed: int = 0) -> Iterator[dict[str, Any]]:
        """Yields each combination once; shuffled by ``seed`` with ``randomize``."""
        choices = [
            [dict(zip(names, value if len(names) > 1 else (value,), strict=True)) for value in rest]
            for names, rest in self.grid
        ]
        combinations = [
            {name: value for part in parts for name, value in part.items()}
            for parts in itertools.product(*choices)
            if parts
        ]
        yield from _shuffled(combinations, seed) if randomize else combinations


@dataclasses.dataclass(frozen=True)
class Task:
    """One experiment, ready to run."""

    name: str  # such as 00_cartpole_see_1
    argv: Sequence[str]  # the command, without where its results go
    where: Sequence[str]  # the arguments that say so
    directory: pathlib.Path  # its own, absolute
    env: Mapping[str, str]  # what its environment has besides the caller's

    @property
    def command(self) -> list[str]:
        return [*self.argv, *self.where]


class Experiment:
    """A command, once for each combination of parameters.

    Args:
      name: of the group; its combinations are numbered within it.
      cmd: the command as in a shell; parameters are appended.
      param_generator: dicts of parameters: a generator's ``generate_params(...)``, a ParamGrid or
        ParamList itself (in its order), or any iterable. Nothing is one experiment without.
      env_vars: more variables for the command's environment.
    """

    def __init__(
        self,
        name: str,
        cmd: str,
        param_generator: Iterable[Params] | ParamGenerator = (),
        env_vars: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(param_generator, ParamGenerator):
            param_generator = param_generator.generate_params(randomize=False)
        self.base_name = name
        self.cmd = cmd
        self.params = [dict(one) for one in param_generator]
        self.env_vars = {str(key): str(value) for key, value in (env_vars or {}).items()}

    def combinations(
        self, customize_name: bool, param_prefix: str
    ) -> Iterator[tuple[str, list[str]]]:
        """Yields (name, argv) of each."""
        argv = shlex.split(self.cmd)
        if not argv:
            raise UserError(f"Experiment '{self.base_name}' has an empty cmd")
        if argv[0] in ("python", "python3"):
            argv[0] = sys.executable  # of the environment that the runner is in
        for index, params in enumerate(self.params or [{}]):
            flags = [f"{param_prefix}{param}={value}" for param, value in params.items()]
            tokens = [self.base_name, *_short_names(params)] if customize_name else [self.base_name]
            name = _file_name(f"{index:02d}_" + "_".join(tokens))
            yield name, [*argv, *flags]


class RunDescription:
    """Experiments, and where their results go.

    Args:
      run_name: name of the run and of its folder in the train dir.
      experiments: what to run, in this order.
      train_dir: where all runs are, unless the command line names another place.
      experiment_arg_name: the flag that takes an experiment's name, for programs that want it
        beside the directory of all experiments; empty: there is none, and
        ``experiment_dir_arg_name`` takes the experiment's own directory.
      experiment_dir_arg_name: the flag that takes the directory.
      customize_experiment_name: whether names tell the parameters.
      param_prefix: what stands before a parameter's name.
    """

    def __init__(
        self,
        run_name: str,
        experiments: Sequence[Experiment],
        experiment_arg_name: str = "",
        experiment_dir_arg_name: str = "--logdir",
        customize_experiment_name: bool = True,
        param_prefix: str = "--",
        train_dir: str = "train_dir",
    ) -> None:
        self.run_name = run_name
        self.experiments = list(experiments)
        self.experiment_suffix = ""
        self.experiment_arg_name = experiment_arg_name
        self.experiment_dir_arg_name = experiment_dir_arg_name
        self.customize_experiment_name = customize_experiment_name
        self.param_prefix = param_prefix
        self.train_dir = train_dir

    def tasks(self, train_dir: str = "") -> list[Task]:
        """All experiments, in order; nothing is made or written.

        Raises:
          UserError: there is none, or two have the same directory.
        """
        tasks: dict[pathlib.Path, Task] = {}
        suffix = f"_{self.experiment_suffix}" if self.experiment_suffix else ""
        for experiment in self.experiments:
            group = self.directory(train_dir) / _file_name(experiment.base_name + suffix)
            named = experiment.combinations(self.customize_experiment_name, self.param_prefix)
            for name, argv in named:
                directory = group / name
                if directory in tasks:
                    raise UserError(
                        f"run '{self.run_name}' has two experiments named '{experiment.base_name}'"
                    )
                tasks[directory] = Task(
                    name, argv, self._where(group, name), directory, experiment.env_vars
                )
        if not tasks:
            raise UserError(f"run '{self.run_name}' has no experiments")
        return list(tasks.values())

    def directory(self, train_dir: str = "") -> pathlib.Path:
        """The run's own, absolute."""
        return pathlib.Path(train_dir or self.train_dir).absolute() / _file_name(self.run_name)

    def _where(self, group: pathlib.Path, name: str) -> list[str]:
        if self.experiment_arg_name:
            named = f"{self.experiment_arg_name}={name}"
            return [named, f"{self.experiment_dir_arg_name}={group}"]
        return [f"{self.experiment_dir_arg_name}={group / name}"]


def _shuffled(values: Sequence[Any], seed: int) -> list[Any]:
    """In an order of its own for each seed, the same in every version of Python."""
    generator = random.Random(seed)  # whose random() is, unlike shuffle(), promised not to change
    return sorted(values, key=lambda _: generator.random())


def _short_names(params: Params) -> Iterator[str]:
    """``see_1`` for seed=1, ``l.rat_0.1`` for learning_rate=0.1, longer where that is taken."""
    taken: set[str] = set()
    for param, value in params.items():
        *first, last = re.split("[._-]", param)
        initials = "".join(f"{word[:1]}." for word in first)
        length = 3
        while (short := initials + last[:length]) in taken and length <= len(last):
            length += 1
        taken.add(short)
        yield f"{short}_{value}"


def _file_name(text: str) -> str:
    """``text`` as a file's name. What is cut or replaced, an experiment's number keeps apart."""
    name = re.sub(r"[^\w.+=,-]+", "-", text)[:_MAX_NAME]
    return name if name.strip(".") else "run"
