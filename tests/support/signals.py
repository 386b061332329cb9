"""What a process is started with that a shell has put in the background."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["sigint_ignored"]


@contextmanager
def sigint_ignored() -> Iterator[None]:
    """What is started meanwhile ignores SIGINT, as what a shell without job control starts with
    `&` does: that is inherited, and Python installs no handler then.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
