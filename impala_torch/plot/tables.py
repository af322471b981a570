"""Tables of numbers as three programs write them, also while they are being written."""

import csv
import dataclasses
import io
import pathlib

import numpy as np

from impala_torch.flags.errors import UserError

IMPALA_TORCH, TORCHBEAST, MOOLIB = "impala_torch", "TorchBeast", "moolib"

# What each program calls its file.
FILE_NAMES = {"metrics.csv": IMPALA_TORCH, "logs.csv": TORCHBEAST, "logs.tsv": MOOLIB}


@dataclasses.dataclass(frozen=True)
class Table:
    """The complete lines of a file; N rows."""

    path: pathlib.Path
    program: str  # one of the three
    names: tuple[str, ...]  # of the columns
    rows: tuple[tuple[str, ...], ...]
    damaged: int  # lines that were left out: another number of cells than columns

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """A column's numbers, float64 [N]; NaN where a cell is empty.

        Raises:
          UserError: there is no such column, or none of its cells is a number.
        """
        if name not in self.names:
            raise UserError(
                f"{self.path} has no column '{name}'; it has {', '.join(self.names) or 'none'}"
            )
        index = self.names.index(name)
        cells = [row[index] if index < len(row) else "" for row in self.rows]
        numbers = [_number(cell) for cell in cells]
        if any(cells) and not any(number is not None for number in numbers):
            raise UserError(f"the column '{name}' of {self.path} holds no numbers")
        return np.array([np.nan if n is None else n for n in numbers], np.float64)


def read(path: pathlib.Path) -> Table:
    """Reads a file; a last line without its end is one that is being written, and waits.

    Raises:
      UserError: it cannot be read, or is of none of the three programs.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    complete = text[: text.rfind("\n") + 1]
    header, _, body = complete.partition("\n")
    header = header.strip()
    program = _program(path, header)
    delimiter = "\t" if program == MOOLIB else ","
    names = header.lstrip("# ").split(delimiter) if header else []
    least = len(names)
    if program == TORCHBEAST:
        names = _later_names(path, names)
    rows = [
        tuple(row)
        for row in csv.reader(io.StringIO(body, newline=""), delimiter=delimiter)
        if row and not row[0].startswith("#")
    ]
    whole = tuple(row for row in rows if least <= len(row) <= len(names))
    return Table(path, program, tuple(names), whole, len(rows) - len(whole))


def _program(path: pathlib.Path, header: str) -> str:
    if not header and path.name in FILE_NAMES:
        return FILE_NAMES[path.name]  # it has only just been opened
    if header.startswith("# _tick,"):
        return TORCHBEAST
    if "\t" in header:
        return MOOLIB
    if {"frames", "updates"} <= set(header.split(",")):
        return IMPALA_TORCH
    raise UserError(
        f"{path} is neither a metrics.csv of impala_torch nor a logs.csv of TorchBeast nor a "
        f"logs.tsv of moolib: it begins with '{header[:60]}'"
    )


def _later_names(path: pathlib.Path, names: list[str]) -> list[str]:
    """TorchBeast writes its header once; columns that came later are in fields.csv's last line."""
    fields = path.with_name("fields.csv")
    if not fields.is_file():
        return names
    text = fields.read_text(encoding="utf-8", errors="replace")
    lines = [line.split(",") for line in text[: text.rfind("\n") + 1].splitlines()]
    return next((line for line in reversed(lines) if line[: len(names)] == names), names)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
