"""Range tables: the wire's own entries as numpy arrays, and thin typed wrappers of the kernels over
them.

A range table is a 1-D C-contiguous array of RANGE, 16 bytes an entry: its buffer is what goes over
the wire (protocol.md, "Frames", MemoryRange). Tables of a peer must have passed `MemoryMap.check`
before they come here: the functions take it that no range is empty or wraps at 2^64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from aiomigrate.memory import kernels

__all__ = [
    "RANGE",
    "Table",
    "chunk",
    "clip",
    "fragments",
    "make_table",
    "merge",
    "split",
    "total_bytes",
    "words",
]

RANGE = np.dtype([("gpa", "<u8"), ("length", "<u8")])

Table: TypeAlias = npt.NDArray[np.void]
_NO_MAPPINGS = np.zeros(0, np.uint64)
_MAX_U64 = 2**64 - 1


def make_table(pairs: Iterable[tuple[int, int]]) -> Table:
    """A table of (gpa, length) pairs; OverflowError for numbers that are no u64."""
    return np.array(list(pairs), dtype=RANGE)


def words(table: Table) -> kernels.Words:
    """The table as an (n, 2) uint64 array for the kernels: a view, or a copy of a table that is not
    aligned.
    """
    flat = np.ascontiguousarray(table)
    return np.require(flat.view(np.uint64), requirements=["C", "A"]).reshape(-1, 2)


def _room(rows: int) -> kernels.Words:
    return np.empty((rows, 2), np.uint64)


def _as_table(rows: kernels.Words, count: int) -> Table:
    return rows[:count].reshape(-1).view(RANGE)


def total_bytes(table: Table) -> int:
    """Sum of the lengths, exact whatever they are."""
    lengths = words(table)[:, 1]
    # Two halves, each of which cannot overflow below 2^32 ranges.
    high = int((lengths >> np.uint64(32)).sum(dtype=np.uint64))
    low = int((lengths & np.uint64(0xFFFFFFFF)).sum(dtype=np.uint64))
    return (high << 32) + low


def merge(table: Table, starts: npt.NDArray[np.uint64] = _NO_MAPPINGS) -> Table:
    """Join ranges that follow each other in table and address; never across one of `starts` (sorted
    u64 gpas).
    """
    out = _room(len(table))
    return _as_table(out, kernels.merge(words(table), starts, out))


def split(table: Table, max_length: int) -> Table:
    """Cut every range into pieces of at most `max_length` bytes (> 0), in order."""
    if not 0 < max_length <= _MAX_U64:
        raise ValueError(f"max_length is {max_length}, not 1 to 2^64-1")
    rows = words(table)
    limit = np.uint64(max_length)
    # Rounded up without the overflow of length + limit - 1.
    pieces = rows[:, 1] // limit + (rows[:, 1] % limit != 0)
    out = _room(int(pieces.sum()))
    return _as_table(out, kernels.split(rows, limit, out))


def clip(table: Table, gpa: int, length: int) -> Table:
    """What of the table lies in the window of `length` bytes at `gpa`, in order."""
    if gpa < 0 or length < 0 or gpa + length > _MAX_U64 + 1:
        raise ValueError(f"no window of guest memory: gpa {gpa:#x}, {length} bytes")
    if length == 0:
        return _as_table(_room(0), 0)
    out = _room(len(table))
    return _as_table(
        out, kernels.clip(words(table), np.uint64(gpa), np.uint64(gpa + length - 1), out)
    )


def fragments(
    table: Table, firsts: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64], extent: int
) -> Table:
    """What is left of a table without the extents that its ranges cover whole.

    An extent is `extent` bytes of a file (a power of two), aligned to that. The mappings that begin
    at `firsts` (sorted u64 gpas) begin at `offsets` in their files. Ranges that follow each other
    count as one.
    """
    rows = words(merge(table, firsts))
    lows = rows[:, 0]
    ends = lows + rows[:, 1]  # may be 2^64, which is 0
    mapping = np.searchsorted(firsts, lows, "right") - 1
    shift = offsets[mapping].astype(np.uint64) - firsts[mapping]  # modulo 2^64: from gpa to file
    mask = np.uint64(extent - 1)
    begins = lows + (-(lows + shift) & mask)
    stops = ends - ((ends + shift) & mask)
    whole = rows[:, 1] >= (begins - lows) + (ends - stops) + np.uint64(extent)
    parts = np.empty((len(rows), 2, 2), np.uint64)
    parts[:, 0, 0] = lows
    parts[:, 0, 1] = np.where(whole, begins - lows, rows[:, 1])
    parts[:, 1, 0] = stops
    parts[:, 1, 1] = np.where(whole, ends - stops, np.uint64(0))
    left = parts.reshape(-1, 2)
    left = left[left[:, 1] > 0]
    return _as_table(left, len(left))


def chunk(table: Table, max_bytes: int, max_ranges: int) -> list[tuple[Table, int]]:
    """Cut a table into chunks: (slice of it, content bytes), at most `max_bytes` and `max_ranges`
    each, in order.

    A range longer than `max_bytes` is split first; else the slices are views of the table.
    """
    if not 0 < max_bytes < 2**63 or max_ranges < 1:
        raise ValueError(f"chunks of {max_bytes} bytes and {max_ranges} ranges cannot be made")
    rows = words(table)
    if len(rows) and int(rows[:, 1].max()) > max_bytes:
        table = split(table, max_bytes)
        rows = words(table)
    cuts = _room(len(rows))
    count = kernels.chunk(rows, np.uint64(max_bytes), min(max_ranges, len(rows) + 1), cuts)
    chunks = []
    begin = 0
    for end, size in cuts[:count].tolist():
        chunks.append((table[begin:end], size))
        begin = end
    return chunks
