"""`aiomigrate warm-up`: compile the kernels at install time, not before the first migration."""

import sys
import time

from aiomigrate.cli.kernels import ALL, are_warm, cache_directory, load_all
from aiomigrate.cli.logs import LogFormat, configure
from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import time_text

__all__ = ["run"]


def run() -> ExitStatus:
    """Compile, and say where to."""
    configure(LogFormat.AUTO, 0)
    began = time.monotonic()
    directory = cache_directory()
    if directory is None:
        print(
            "aiomigrate: there is nowhere to keep compiled kernels: set NUMBA_CACHE_DIR to a "
            "directory that can be written",
            file=sys.stderr,
        )
        return ExitStatus.FAILED
    were_warm = are_warm(ALL)
    load_all()
    did = "were there already, loaded" if were_warm else "compiled"
    print(f"kernels {did} in {time_text(time.monotonic() - began)}: {directory}")
    return ExitStatus.DONE
