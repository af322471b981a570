"""Files that are appended to, in pieces that are there whole or not at all."""

import contextlib
import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


class AppendedFile:
    """A file that only grows. It is opened by the first ``append``; one that fails, as on a full
    disk, leaves it as it was, and the next may succeed."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._file: int | None = None

    def append(self, data: bytes) -> None:
        """Adds ``data``. Raises OSError where not all of it could be written, and none of it is."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        before = os.fstat(self._file).st_size
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            with contextlib.suppress(OSError):  # of what is no real file
                os.ftruncate(self._file, before)
            raise

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class AppendedCsv:
    """A table that rows are added to. An older file keeps the columns that it has; a last row that
    was not written to its end, by a process that was killed or on a full disk, is cut off."""

    def __init__(self, path: pathlib.Path, columns: Sequence[str]) -> None:
        """
        Args:
          path: of the file, which may not be there yet.
          columns: of a new file; a later version may add some at the end.
        """
        self._path, self._new = path, columns
        self._file = AppendedFile(path)
        self._columns: Sequence[str] = ()  # of the file; none before its first row

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row by column name; cells without a value, or with None, stay empty.

        Raises:
          OSError: it could not be written; the file is as before.
        """
        heading = False
        if not self._columns:
            there = _end_last_row(self._path)
            heading = not there
            self._columns = there or self._new
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="", extrasaction="ignore")
        if heading:
            writer.writeheader()
        writer.writerow({name: _short(value) for name, value in row.items()})
        try:
            self._file.append(text.getvalue().encode())
        except OSError:
            self._columns = ()  # whether its heading is there, is seen when it is tried again
            raise

    def close(self) -> None:
        self._file.close()


def _end_last_row(path: pathlib.Path) -> list[str]:
    """Cuts off what follows the last whole line; the file's columns, none where it has no line."""
    try:
        with open(path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end:  # backwards: a file of months is long, and its last row is short
                start = max(0, end - 4096)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
            file.seek(0)
            # No more than there is: a device goes on for ever.
            line = file.readline(end).decode(errors="replace").strip() if end else ""
    except FileNotFoundError:
        return []
    return line.split(",") if line else []


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) and abs(value) < 1e9 else value
