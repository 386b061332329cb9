"""Range tables and memory maps as plain Python integers, for what kernels are compared with."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt

Pairs = list[tuple[int, int]]
"""Ranges as (gpa, length), or mappings as (first, last)."""

TOP = 2**64


def as_words(pairs: Pairs) -> npt.NDArray[np.uint64]:
    """The (n, 2) array that kernels take."""
    return np.array(pairs, np.uint64).reshape(-1, 2)


def as_map(mappings: Pairs) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The columns of a memory map."""
    return (
        np.array([first for first, _ in mappings], np.uint64),
        np.array([last for _, last in mappings], np.uint64),
    )


def pairs_of(rows: npt.NDArray[np.uint64]) -> Pairs:
    """The ranges of a table that a kernel has written."""
    return [(int(a), int(b)) for a, b in rows.tolist()]


def naive_split(table: Pairs, limit: int) -> Pairs:
    """Ranges cut into pieces of at most `limit` bytes."""
    return [
        (gpa + at, min(limit, length - at))
        for gpa, length in table
        for at in range(0, length, limit)
    ]


def holders_of_the_gil(module: ModuleType) -> set[str]:
    """Names of a module's kernels that keep the GIL, as the dispatchers say themselves."""
    return {
        name
        for name in module.__all__
        if hasattr(getattr(module, name), "targetoptions")
        and not getattr(module, name).targetoptions["nogil"]
    }
