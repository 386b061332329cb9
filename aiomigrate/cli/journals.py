"""Where the command line keeps its journal: what `aiomigrate outcome` answers from after a crash.

The default is a directory of the user's state (XDG base directory specification). A migration does
not fail because that cannot be written; it does if a journal was named.
"""

import os
import sys
from pathlib import Path

__all__ = ["default_journal", "journal_to_write"]


def default_journal() -> str:
    """`$XDG_STATE_HOME/aiomigrate`, else `~/.local/state/aiomigrate`."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the specification has relative paths ignored
        state = os.path.expanduser("~/.local/state")
    return os.path.join(state, "aiomigrate")


def journal_to_write(named: str | None) -> str | None:
    """The journal for a migration: the one that was named, else the default if it can be written;
    else none, and a person is told.
    """
    if named is not None:
        return os.path.abspath(named)
    place = Path(default_journal())
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        usable = os.access(place, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    if usable:
        return str(place)
    print(
        f"aiomigrate: no journal is kept: {place} cannot be written; --journal names another",
        file=sys.stderr,
    )
    return None
