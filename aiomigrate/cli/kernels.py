"""Where compiled kernels are kept, and whether they are there. Only `load` loads numba."""

import gc
import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["ALL", "ENGINE", "are_warm", "cache_directory", "load", "load_all"]

ENGINE = (
    "memory.bitmap_kernels",
    "memory.call_kernels",
    "memory.file_kernels",
    "memory.kernels",
    "memory.system_kernels",
    "memory.zero_kernels",
)
"""Modules of aiomigrate whose kernels every migration needs; `load` loads them all."""
ALL = (*ENGINE, "tiny_vmm.thread_cpu")
"""Those and the one of the demo's guest; `load_all` loads them all."""


def cache_directory() -> Path | None:
    """The directory of compiled kernels; None where none is writable."""
    from aiomigrate.memory.numba_cache import cache_directory as chosen

    return chosen()


def are_warm(modules: tuple[str, ...] = ENGINE) -> bool:
    """Whether the kernels of `modules` were compiled since their source was last changed."""
    directory = cache_directory()
    return directory is not None and all(_is_warm(module, directory) for module in modules)


def load() -> None:
    """Compile the kernels of `ENGINE`, or load them from the cache."""
    with _without_collection():
        import aiomigrate.memory.bitmaps
        import aiomigrate.memory.blocks
        import aiomigrate.memory.guest  # noqa: F401  # importing compiles or loads them


def load_all() -> None:
    """Compile the kernels of `ALL`, or load them from the cache."""
    load()
    import aiomigrate.tiny_vmm.thread_cpu  # noqa: F401  # as above


@contextmanager
def _without_collection() -> Iterator[None]:
    """Of garbage: numba makes a hundred thousand objects that stay, and looking for others among
    them takes a seventh of the time of loading.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _is_warm(module: str, directory: Path) -> bool:
    spec = find_spec(f"aiomigrate.{module}")
    if spec is None or spec.origin is None:
        return False
    source = Path(spec.origin)
    name = module.rpartition(".")[2]
    changed = source.stat()
    # What numba stamps an index with: a digest since 0.68, the other before.
    stamps = (
        hashlib.sha256(source.read_bytes()).digest(),
        (changed.st_mtime, changed.st_size),
    )
    return any(_stamp(index) in stamps for index in directory.rglob(f"{name}.*.nbi"))


def _stamp(index: Path) -> object:
    """Of which source a kernel was compiled, as numba's index of it says; None if it is damaged.

    The index holds two pickles (numba/core/caching.py): numba's version, and a pair of the stamp
    and what there is for each signature. The time the index was written says nothing: where a
    source comes again with a new time (a fresh checkout), numba takes what it has.
    """
    with suppress(Exception), index.open("rb") as file:  # damaged pickles raise almost anything
        _WithoutNumba(file).load()
        stamp, _ = _WithoutNumba(file).load()
        return stamp
    return None


class _WithoutNumba(pickle.Unpickler):
    """Takes numbers and words as they are, and anything else for `_Opaque`: runs no code."""

    def find_class(self, _module: str, _name: str, /) -> Any:
        return _Opaque


class _Opaque:
    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...
