"""Where compiled kernels are kept, and whether they are there. Only `load` loads numba."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["ALL", "ENGINE", "are_warm", "cache_directory", "load", "load_all"]

ENGINE = (
    "memory.bitmap_kernels",
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
    import aiomigrate.memory.bitmaps
    import aiomigrate.memory.blocks
    import aiomigrate.memory.guest  # noqa: F401  # importing compiles or loads them


def load_all() -> None:
    """Compile the kernels of `ALL`, or load them from the cache."""
    load()
    import aiomigrate.tiny_vmm.thread_cpu  # noqa: F401  # as above


def _is_warm(module: str, directory: Path) -> bool:
    spec = find_spec(f"aiomigrate.{module}")
    if spec is None or spec.origin is None:
        return False
    name = module.rpartition(".")[2]
    changed = Path(spec.origin).stat().st_mtime
    return any(index.stat().st_mtime >= changed for index in directory.rglob(f"{name}.*.nbi"))
