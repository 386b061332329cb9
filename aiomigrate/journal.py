"""The journal: what each side of a migration leaves on disk for whoever asks, after a crash of
either process, who owns the VM.

A directory holds one file a migration and side, `<id>.<side>.json`: a few hundred bytes of JSON,
read strictly. A record says at first what may become of the VM, before that can happen, and is
replaced by what did: atomically and durably, so that there is always a whole one. Who writes it
holds a lock (flock) on it: a record that is locked belongs to a process that is still at work.

The token of the ownership query is in it, and whoever has that can fence the migration: the
directory is 0700, the files 0600. The id is derived from the token and does not reveal it; both
sides get the same one.

All of it waits for the disk: it is called in jobs, never on an event loop.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self, TypeVar

from aiomigrate.memory.directory import is_locked, replace_file
from aiomigrate.memory.document import DocumentError, load, member, members, moment
from aiomigrate.protocol import TOKEN_BYTES

__all__ = [
    "ID_PATTERN",
    "Journal",
    "JournalError",
    "Record",
    "Side",
    "Standing",
    "list_journal",
    "migration_id",
    "read_record",
]

VERSION = 1
_E = TypeVar("_E", bound=StrEnum)
_MAX_BYTES = 64 << 10
"""Arbitrary: a record has some 400 bytes, and a path in it up to 4 KiB."""
ID_PATTERN = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(rf"({ID_PATTERN.pattern})\.(source|destination)\.json")
_MEMBERS = {
    "version", "id", "token", "side", "peer", "ownership", "vm", "stored", "state", "began",
    "changed",
}  # fmt: skip


class JournalError(Exception):
    """A journal at `path` that cannot be written or read; `why` is the reason as half a
    sentence.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"journal {self.path}: {self.why}"


class Side(StrEnum):
    """Whose record it is."""

    SOURCE = "source"
    DESTINATION = "destination"


class Standing(StrEnum):
    """What a record says of the VM, seen from its side."""

    MAY_BE_GIVEN = "may have been given away"
    """The source's first: durable before the first byte of Complete."""
    THEIRS = "theirs"
    """The source's: the destination has the VM."""
    OURS = "ours"
    """The source's: it has kept the VM."""
    MAY_BE_TAKEN = "may be taken over"
    """The destination's first: durable before it executes Complete."""
    OWNED = "owned"
    """The destination's: it has the VM, and the source may not have noted it."""
    CONFIRMED = "confirmed"
    """Owned, and the source has that on its disk; or it is a plain peer, and knows."""
    ABORTED = "aborted"
    """Discarded: the VM is the source's."""


_STANDINGS: Mapping[Side, frozenset[Standing]] = {
    Side.SOURCE: frozenset({Standing.MAY_BE_GIVEN, Standing.THEIRS, Standing.OURS}),
    Side.DESTINATION: frozenset(
        {Standing.MAY_BE_TAKEN, Standing.OWNED, Standing.CONFIRMED, Standing.ABORTED}
    ),
}


def migration_id(token: bytes) -> str:
    """The public name of a migration: 16 hexadecimal digits, the same at both sides."""
    return hashlib.sha256(b"aiomigrate migration\0" + token).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one side knows of one migration."""

    token: bytes
    """16 bytes; the session's, or of our own making where the peer is a plain one."""
    side: Side
    """Whose record it is: `source` or `destination`."""
    peer: str
    """The other side's address; for a source, where an ownership query goes."""
    ownership: bool
    """Whether the peer agreed to ownership queries."""
    vm: str
    """What names the VM here, for a person; the absolute path of a stored one."""
    stored: bool
    """Whether `vm` is the directory of a stored VM."""
    state: Standing
    """Who owns the VM, as far as this side knows."""
    began: datetime
    """When the record was made."""
    changed: datetime
    """When it was changed last."""

    @property
    def id(self) -> str:
        """The migration's id."""
        return migration_id(self.token)

    @property
    def name(self) -> str:
        """Its file's name in the journal."""
        return f"{self.id}.{self.side}.json"

    @classmethod
    def begin(
        cls, *, token: bytes, side: Side, peer: str, ownership: bool, vm: str, stored: bool
    ) -> Self:
        """The first record of a migration."""
        state = Standing.MAY_BE_GIVEN if side is Side.SOURCE else Standing.MAY_BE_TAKEN
        now = _now()
        return cls(
            token=token,
            side=side,
            peer=peer,
            ownership=ownership,
            vm=vm,
            stored=stored,
            state=state,
            began=now,
            changed=now,
        )

    def now(self, state: Standing) -> Self:
        """The same, in another state from now on."""
        return replace(self, state=state, changed=_now())

    def encode(self) -> bytes:
        """The record as JSON text."""
        document = {
            "version": VERSION,
            "id": self.id,
            "token": self.token.hex(),
            "side": self.side,
            "peer": self.peer,
            "ownership": self.ownership,
            "vm": self.vm,
            "stored": self.stored,
            "state": self.state,
            "began": self.began.isoformat(),
            "changed": self.changed.isoformat(),
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Read `raw`, JSON text; DocumentError for anything that `encode` does not write."""
        where = "the document"
        document, _ = load(raw, VERSION)
        found = members(document, _MEMBERS, where)
        try:
            token = bytes.fromhex(member(found, "token", str, where))
        except ValueError:
            raise DocumentError(f"token of {where} is not hexadecimal") from None
        if len(token) != TOKEN_BYTES:
            raise DocumentError(f"token of {where} has {len(token)} bytes, not {TOKEN_BYTES}")
        if member(found, "id", str, where) != migration_id(token):
            raise DocumentError(f"id of {where} is not that of its token")
        side = _one_of(frozenset(Side), found, "side", where)
        return cls(
            token=token,
            side=side,
            peer=member(found, "peer", str, where),
            ownership=member(found, "ownership", bool, where),
            vm=member(found, "vm", str, where),
            stored=member(found, "stored", bool, where),
            state=_one_of(_STANDINGS[side], found, "state", where),
            began=moment(found, "began", where),
            changed=moment(found, "changed", where),
        )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _one_of(choices: frozenset[_E], found: dict[str, object], name: str, where: str) -> _E:
    text = member(found, name, str, where)
    for choice in choices:
        if choice == text:
            return choice
    raise DocumentError(f"{name} of {where} is none of {', '.join(sorted(choices))}")


class Journal:
    """The record of one migration at one side, in `directory`; locked from `write` to `close`.

    For one thread at a time.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = os.fspath(directory)
        self._held = -1

    @property
    def held(self) -> bool:
        """Whether a record was written and is locked."""
        return self._held >= 0

    def write(self, record: Record) -> None:
        """Make `record` the migration's, durably; JournalError if that fails.

        The directory is made if it is missing.
        """
        try:
            directory = _open_directory(os.path.abspath(self.path))
            try:
                written = replace_file(directory, record.name, record.encode())
            finally:
                os.close(directory)
        except OSError as error:
            raise JournalError(self.path, f"writing failed: {error.strerror or error}") from error
        except (TypeError, ValueError) as error:  # a path or a name that is none
            raise JournalError(self.path, f"writing failed: {error}") from error
        self.close()  # only now: at no time is the record there and not locked
        self._held = written

    def close(self) -> None:
        """Let go of the record; idempotent."""
        if self.held:
            os.close(self._held)
            self._held = -1


def _open_directory(path: str) -> int:
    """Open a directory; it, and what is missing above it, is made and durable."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    parent = _open_directory(os.path.dirname(path))
    try:
        try:
            os.mkdir(os.path.basename(path), 0o700, dir_fd=parent)
            os.fsync(parent)
        except FileExistsError:
            pass  # somebody else was first
        return os.open(os.path.basename(path), flags, dir_fd=parent)
    finally:
        os.close(parent)


def list_journal(directory: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """The migrations of a journal: their ids, each with the names of its records' files.

    Empty if there is no such directory; JournalError if it cannot be read.
    """
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise JournalError(os.fspath(directory), f"reading failed: {error.strerror}") from error
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        if match := _NAME.fullmatch(name):
            found[match[1]] = (*found.get(match[1], ()), name)
    return found


def read_record(directory: str | os.PathLike[str], name: str) -> tuple[Record, bool]:
    """A record, and whether the process that wrote it is still at work.

    JournalError if it cannot be read, and FileNotFoundError as its cause if there is none.
    """
    path = os.path.join(os.fspath(directory), name)
    try:
        while True:
            raw, held, current = _read(path)
            if current:  # else it was replaced before its lock was looked at
                break
        record = Record.decode(raw)
    except DocumentError as error:
        raise JournalError(path, error.why) from None
    except OSError as error:
        raise JournalError(path, f"reading failed: {error.strerror}") from error
    if record.name != name:
        raise JournalError(path, f"it holds the record of {record.name}")
    return record, held


def _read(path: str) -> tuple[bytes, bool, bool]:
    """What a file holds, whether it is locked, and whether it is still the one of that name."""
    # Without waiting: it could be a FIFO.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        held = is_locked(fd)
        raw = os.pread(fd, _MAX_BYTES, 0)
        return raw, held, os.path.samestat(os.stat(path), os.fstat(fd))
    finally:
        os.close(fd)
