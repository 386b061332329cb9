"""Where compiled kernels are kept, and whether they are there. Loads no numba."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["are_warm", "cache_directory"]

_MODULES = ("kernels", "system_kernels", "zero_kernels")
"""Of aiomigrate.memory; `GuestMemory` uses them all."""


def cache_directory() -> Path | None:
    """The directory of compiled kernels; None where none is writable."""
    from aiomigrate.memory.numba_cache import cache_directory as chosen

    return chosen()


def are_warm() -> bool:
    """Whether all kernels were compiled since their source was last changed."""
    directory = cache_directory()
    return directory is not None and all(_is_warm(module, directory) for module in _MODULES)


def _is_warm(module: str, directory: Path) -> bool:
    spec = find_spec(f"aiomigrate.memory.{module}")
    if spec is None or spec.origin is None:
        return False
    changed = Path(spec.origin).stat().st_mtime
    return any(index.stat().st_mtime >= changed for index in directory.rglob(f"{module}.*.nbi"))
