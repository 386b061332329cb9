"""What need not be kept: what is left of stored VMs that never came to be (`sweep_all`), and
records of a journal that nobody can need any more, once there are many (`prune`).

A record is needed as long as its absence would say something wrong. Of a destination that has no
record it is known that it never owned the VM (docs/decisions/0011): so its *aborted* may go, and
its *owned* may not, unless the source has noted that (*confirmed*): also one that cannot ask may
have a journal, with the same id in it, and somebody who looks for that here. At a source
*theirs* and *ours* are told from everything else, and a doubt stays until it is settled. Records
of both sides in one journal go together.

So a journal has about `MANY` records, and besides as many as there were crashes that nobody has
looked at, and VMs whose source never sent Confirm.
"""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress

from aiomigrate.journal import JournalError, Standing, list_journal, read_record
from aiomigrate.memory.directory import is_partial, sweep_all

__all__ = ["MANY", "prune", "sweep_all"]

log = logging.getLogger("aiomigrate")

MANY = 1024
"""Records in a journal before the oldest are looked at. Arbitrary: weeks of a busy host, half a
megabyte."""
_FEWER = MANY // 8
"""So many are removed at once, that not every migration looks for some."""
_STALE_S = 86_400.0
"""A file that was being written a day ago is not being written now. Arbitrary."""

_SETTLED = {Standing.THEIRS, Standing.OURS, Standing.CONFIRMED, Standing.ABORTED}


def prune(journal: str | os.PathLike[str]) -> None:
    """Remove what a journal need not keep, oldest first, if it has many records; and what writers
    that were killed have left. JournalError, OSError if that fails; waits for the disk.
    """
    _remove_partial(journal)
    migrations = list_journal(journal)
    excess = sum(map(len, migrations.values())) - MANY
    if excess <= 0:
        return
    excess += _FEWER
    for names in sorted(migrations.values(), key=lambda names: _changed(journal, names)):
        if excess <= 0:
            break
        if all(_is_dispensable(journal, name) for name in names):
            for name in names:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(journal, name))
            excess -= len(names)


def _changed(journal: str | os.PathLike[str], names: Sequence[str]) -> float:
    """When the newest of these was written: each change is a file of its own."""
    newest = 0.0
    for name in names:
        with suppress(FileNotFoundError):
            newest = max(newest, os.stat(os.path.join(journal, name)).st_mtime)
    return newest


def _is_dispensable(journal: str | os.PathLike[str], name: str) -> bool:
    try:
        record, held = read_record(journal, name)
    except JournalError as error:
        # Another process prunes, too, and was first. Anything else is for a person to look at.
        return isinstance(error.__cause__, FileNotFoundError)
    return not held and record.state in _SETTLED


def _remove_partial(journal: str | os.PathLike[str]) -> None:
    with os.scandir(journal) as entries:
        for entry in entries:
            # Directories of that name are stored VMs in the making, and not the journal's.
            if not is_partial(entry.name) or entry.is_dir(follow_symlinks=False):
                continue
            with suppress(FileNotFoundError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S:
                    os.unlink(entry.path)
