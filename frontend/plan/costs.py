"""The costs that a plan is made of: measured here by child processes, or read from a file."""

import dataclasses
import datetime
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frontend import commands
from frontend.commands import Mpi
from frontend.plan.scaling import Costs
from impala_torch.flags.command_line import to_argv
from impala_torch.flags.config import Config
from impala_torch.flags.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
_ALLREDUCE_SECS = 120.0
# What is taken where no allreduce can be measured: Horovod's cycle, and one core that adds up.
_FIXED_SECS, _ADDING_BYTES = 2e-3, 2e9
_MAY_BE_ZERO = ("update_fixed_secs", "update_jitter", "overlap_secs", "adding_beside")
_BUSY = 0.3  # load for each core from which measurements mean little
_ABOUT = ("link_bytes_per_sec", "machine", "date")  # what a file says besides


@dataclasses.dataclass(frozen=True)
class Measured:
    """Costs, and where they are from."""

    costs: Costs
    link_bytes_per_sec: float | None  # of that machine's network interface; None unknown
    machine: str
    date: str
    notes: tuple[str, ...] = ()  # what was assumed instead of measured

    def save(self, path: str) -> None:
        """Raises UserError where the file cannot be written."""
        values = dataclasses.asdict(self.costs)
        values |= {name: getattr(self, name) for name in _ABOUT}
        try:
            pathlib.Path(path).write_text(json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--save_costs={path} cannot be written: {error.strerror}") from error


def load(path: str) -> Measured:
    """Reads what ``save`` wrote. Raises UserError naming the file and what is wrong in it."""
    where = f"--costs={path}"
    try:
        values = json.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a JSON object of costs, as --save_costs writes it")
    link = values.get("link_bytes_per_sec")
    if link is not None:
        link = _number(where, "link_bytes_per_sec", link, float)
    machine_of, date = (str(values.get(name, "unknown")) for name in ("machine", "date"))
    return Measured(costs_of(values, where), link, machine_of, date)


def costs_of(values: Mapping[str, Any], where: str) -> Costs:
    """Checks the fields of Costs. Raises UserError naming ``where`` and the field."""
    fields = dataclasses.fields(Costs)
    unknown = sorted(set(values) - {field.name for field in fields} - set(_ABOUT))
    if unknown:
        raise UserError(f"{where} has an unknown field '{unknown[0]}'")
    checked: dict[str, Any] = {}
    for field in fields:
        if field.name not in values:
            raise UserError(f"{where} lacks the field '{field.name}': write it with --save_costs")
        value = values[field.name]
        if field.type is str:
            checked[field.name] = str(value)
        else:
            checked[field.name] = _number(where, field.name, value, field.type)
    if checked["adding_beside"] > 1:
        raise UserError(f"{where}: 'adding_beside' is a share: it must not be more than 1")
    if checked["update_fixed_secs"] > checked["update_secs"]:
        raise UserError(
            f"{where}: 'update_fixed_secs' is a part of 'update_secs': it must not be more"
        )
    return Costs(**checked)


def measure(config: Config, tell: Callable[[str], None]) -> Measured:
    """Measures this machine, for --sample_secs each part.

    Args:
      config: the flags of the training that is planned.
      tell: gets a line on each part that begins.

    Raises:
      UserError: the flags cannot be, or a measurement failed.
    """
    busy = os.getloadavg()[0]
    argv = [sys.executable, "-m", "impala_torch.measure.measure", *to_argv(config, mode="train")]
    values = json.loads(_output(argv, tell))
    link = values.pop("link_bytes_per_sec")
    tell("measuring an allreduce of two ranks")
    fixed, adding, note = _allreduce()
    values |= {"allreduce_fixed_secs": fixed, "allreduce_bytes_per_sec": adding}
    costs = costs_of(values, "what impala_torch.measure.measure printed")
    notes = [note] if note else []
    if busy > _BUSY * (os.cpu_count() or 1):
        notes.append(
            f"this machine was busy with other work (load {busy:.1f}): its parts are faster than "
            "what was measured"
        )
    return Measured(costs, link, machine(), datetime.date.today().isoformat(), tuple(notes))


def ring_part(result: Mapping[str, float]) -> tuple[float, float]:
    """(fixed seconds, bytes per second of a ring) of what ``measure.allreduce`` printed."""
    ring = max(1e-6, result["secs"] - result["small_secs"])
    ranks = result["ranks"]
    return result["small_secs"], 2 * (ranks - 1) / ranks * result["bytes"] / ring


def _allreduce() -> tuple[float, float, str]:
    """The same measured here, or assumed and said so."""
    mpirun = shutil.which("mpirun")
    problem = "mpirun is not installed here"
    if mpirun:
        program = [sys.executable, "-m", "impala_torch.measure.allreduce"]
        mpi = Mpi(mpirun, as_root=os.geteuid() == 0)
        argv = commands.mpi_job(["localhost"] * 2, [program] * 2, mpi, over_ssh=False)
        try:
            done = subprocess.run(
                argv,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=_ALLREDUCE_SECS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            problem = f"an allreduce of two ranks took more than {_ALLREDUCE_SECS:.0f} s"
        else:
            for line in done.stdout.splitlines():
                if line.startswith('{"ranks"'):
                    return *ring_part(json.loads(line)), ""
            last = [line for line in done.stderr.splitlines() if line.strip(" -")][-1:]
            problem = f"an allreduce of two ranks failed ({' '.join(last)[:200]})"
    assumed = f"{1000 * _FIXED_SECS:.0f} ms and {_ADDING_BYTES / 1e9:.0f} GB/s"
    return _FIXED_SECS, _ADDING_BYTES, f"{problem}: its part of averaging is taken as {assumed}"


def _output(argv: Sequence[str], tell: Callable[[str], None]) -> str:
    """What a child prints; its lines on standard error go to ``tell``, or into the error."""
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        last = ""
        try:
            for line in child.stderr:
                if line.startswith("measuring "):
                    tell(line.strip())
                elif line.strip():
                    last = line.strip()
            printed = child.stdout.read()
        except BaseException:
            child.kill()
            raise
    if child.returncode == 2:
        raise UserError(last.removeprefix("error: "))
    if child.returncode:
        raise UserError(f"{' '.join(argv[1:3])} failed (exit code {child.returncode}): {last}")
    return printed


def _number(where: str, name: str, value: Any, kind: Any) -> Any:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if good and kind is int:
        good = value == int(value)
    low = 0.0 if name in _MAY_BE_ZERO else 5e-324
    if not good or value < low:
        at_least = "0 or more" if name in _MAY_BE_ZERO else "more than 0"
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{where}: '{name}' must be {what} of {at_least}, not {value!r}")
    return kind(value)


def machine() -> str:
    """This machine in words."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores, {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores"
