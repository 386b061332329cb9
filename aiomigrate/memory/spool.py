"""A peer's range table of any size, held without memory of that size.

A stock sender with one connection puts all dirt into one table: 16 bytes for each dirty 4 KiB. Up
to IN_MEMORY bytes are kept in memory, a longer table goes to a temporary file that has no name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Self

import numpy as np

from aiomigrate.memory.ranges import RANGE, Table

__all__ = ["IN_MEMORY", "TableSpool"]

IN_MEMORY = 4 * 1024 * 1024
"""Bytes of a table that are kept in memory (design.md, invariant 10)."""


class TableSpool:
    """Append slices of a table, then read them back in any size; synchronous."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self.ranges = 0
        """Ranges held."""

    @property
    def spilled(self) -> bool:
        """Whether reading it back reads a file."""
        return self._file is not None

    def append(self, table: Table) -> None:
        """Add ranges at the end; OSError if the temporary file cannot be written."""
        data = table.tobytes()
        if self._file is None and len(self._memory) + len(data) <= IN_MEMORY:
            self._memory += data
        else:
            if self._file is None:
                # Closed by close(): it lives as long as the spool.
                self._file = tempfile.TemporaryFile(  # noqa: SIM115  # see above
                    buffering=0, prefix="aiomigrate-table-"
                )
                _write(self._file, self._memory)
                self._memory = bytearray()
            _write(self._file, data)
        self.ranges += len(table)

    def slices(self, max_ranges: int) -> Iterator[Table]:
        """The ranges in order, at most `max_ranges` at a time, as read-only tables."""
        step = max_ranges * RANGE.itemsize
        for begin in range(0, self.ranges * RANGE.itemsize, step):
            size = min(step, self.ranges * RANGE.itemsize - begin)
            yield np.frombuffer(self._read(begin, size), RANGE)

    def _read(self, begin: int, size: int) -> bytes:
        if self._file is None:
            return bytes(self._memory[begin : begin + size])
        data = bytearray()
        while len(data) < size:
            piece = os.pread(self._file.fileno(), size - len(data), begin + len(data))
            if not piece:
                raise OSError("a spooled range table was cut short")
            data += piece
        return bytes(data)

    def close(self) -> None:
        """Give memory and file back; idempotent."""
        self._memory = bytearray()
        self.ranges = 0
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _write(file: IO[bytes], data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
