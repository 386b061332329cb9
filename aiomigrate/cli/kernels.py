"""Where compiled kernels are kept, and whether they are there. Only `load` loads numba."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["are_warm", "cache_directory", "load"]

_MODULES = ("bitmap_kernels", "kernels", "system_kernels", "zero_kernels")
"""Of aiomigrate.memory; `load` loads them all."""


def cache_directory() -> Path | None:
    """The directory of compiled kernels; None where none is writable."""
    from aiomigrate.memory.numba_cache import cache_directory as chosen

    return chosen()


def are_warm() -> bool:
    """Whether all kernels were compiled since their source was last changed."""
    directory = cache_directory()
    return directory is not None and all(_is_warm(module, directory) for module in _MODULES)


def load() -> None:
    """Compile the kernels, or load them from the cache."""
    import aiomigrate.memory.bitmaps
    import aiomigrate.memory.guest  # noqa: F401  # importing compiles or loads them


def _is_warm(module: str, directory: Path) -> bool:
    spec = find_spec(f"aiomigrate.memory.{module}")
    if spec is None or spec.origin is None:
        return False
    changed = Path(spec.origin).stat().st_mtime
    return any(index.stat().st_mtime >= changed for index in directory.rglob(f"{module}.*.nbi"))
