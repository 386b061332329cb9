"""Compile kernels with a cache on disk where one is possible, and without one where none is.

Left to itself, numba raises at import when it finds no directory to write to (read-only install, no
home). So the directory is chosen here: `NUMBA_CACHE_DIR` if set, else the user's cache directory,
else a directory in the package. A cache holds pickles, which are code: a directory that somebody
else may write to is never taken, and so there is no fallback into a shared /tmp. numba reads the
directory from its global configuration while a kernel is declared; it is set for just that time.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["cache_directory", "compiled"]

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_log = logging.getLogger("aiomigrate.memory")
_config_lock = threading.Lock()


def _candidates() -> Iterator[Path]:
    user = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(user):
        yield Path(user, "aiomigrate", "numba")
    else:
        # Path.home() raises RuntimeError where there is neither HOME nor an entry for the uid.
        with suppress(RuntimeError):
            home = Path.home()
            if home.is_absolute():
                yield home / ".cache" / "aiomigrate" / "numba"
    yield Path(__file__).parent / "__pycache__" / "numba"


def _is_ours(directory: Path) -> bool:
    """Make `directory` if it can be made; true if it can be written by us and by nobody else."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.stat()
        if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
        tempfile.TemporaryFile(dir=directory).close()
    except OSError:
        return False
    return True


@cache
def cache_directory() -> Path | None:
    """Where compiled kernels are kept, or None (said once, as a warning in the log) where nothing
    is writable.

    Needs no numba and never raises.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        # Named by the user, who answers for who may write there.
        try:
            os.makedirs(chosen, exist_ok=True)
            tempfile.TemporaryFile(dir=chosen).close()
        except (OSError, ValueError):
            pass
        else:
            return Path(chosen)
    for directory in _candidates():
        if _is_ours(directory):
            return directory
    _go_without("no directory for it is writable; set NUMBA_CACHE_DIR to one")
    return None


@cache
def _go_without(why: str) -> None:
    """Say once (for each reason) that there is no cache."""
    _log.warning("kernels are compiled at each start, without a cache: %s", why)


def compiled(signature: Any, *, nogil: bool = True) -> Callable[[_Kernel], _Kernel]:
    """Decorator: compile a kernel now for one signature, from the cache if it holds it.

    A kernel of a microsecond that the event loop calls keeps the GIL (`nogil=False`): to get it
    back from another thread would cost many times that (32 us instead of 2, as measured).

    Trouble with the cache (a full disk, a damaged file) costs the cache, not the kernel; only a
    kernel that does not compile raises.
    """

    def decorate(kernel: _Kernel) -> _Kernel:
        numba = import_module("numba")
        directory = cache_directory()
        if directory is not None:
            with _config_lock:
                before = numba.config.CACHE_DIR
                numba.config.CACHE_DIR = str(directory)
                try:
                    result: _Kernel = numba.njit(signature, nogil=nogil, cache=True)(kernel)
                    return result
                # Damaged pickles raise almost anything. A fault of the kernel itself is raised
                # again below.
                except Exception as error:
                    _go_without(f"{directory} cannot be used ({type(error).__name__}: {error})")
                finally:
                    numba.config.CACHE_DIR = before
        uncached: _Kernel = numba.njit(signature, nogil=nogil)(kernel)
        return uncached

    return decorate
