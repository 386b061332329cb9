"""The manifest of a stored VM: `aiomigrate.json`, what the other files should be and where the VM
has been.

The document is JSON with a version, read strictly (`memory.document`): what is not as it should be
is a ManifestError, and so is a version that is newer than this program. Version 2 added the
migration that a VM was taken by, version 3 compressed memory. Every version is read; written is the
oldest that can say what there is to say, so that an older aiomigrate reads all that it could use.
The history decides whether the VM may be run from here: a VM must not run twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Literal, TypeAlias, cast, get_args

from aiomigrate.memory.document import DocumentError, load, member, members, moment
from aiomigrate.memory.errors import ManifestError

__all__ = ["VERSION", "Given", "HistoryEntry", "Manifest", "Outcome", "StoredFile", "Taken"]

VERSION = 3
"""The newest."""
_WITHOUT_COMPRESSION = 2

Outcome: TypeAlias = Literal["done", "unknown", "failed"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of the stored VM beside the manifest."""

    name: str
    """Without a directory."""
    size: int
    """In bytes, holes included."""
    checksum: str | None
    """As `checksum.checksum` gives it, of plain content; None where it was not computed."""
    memory_size: int | None = None
    """Bytes of memory that the file holds in compressed frames; None: it is what it is."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The VM was received into this directory."""

    at: datetime
    """When the source was told."""
    source: str
    """The peer's address, as text."""
    confirmed: bool
    """Whether the source is known to have read our last answer. If not, it may still run the VM."""
    migration: str | None = None
    """Its id, as in the journals of both sides; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Given:
    """The VM was sent from this directory, or that was tried."""

    at: datetime
    """When it was tried, or what came of it was noted."""
    destination: str
    """The peer's address, as text."""
    outcome: Outcome
    """`done`, `failed` (it stayed here), or `unknown`: it may be there."""
    running: bool
    """Whether the destination was told to run it."""


HistoryEntry: TypeAlias = Taken | Given


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stored VM's manifest says."""

    running: bool
    """Whether the VM ran when it was taken (Complete), or was paused (CompletePaused)."""
    files: tuple[StoredFile, ...] = ()
    """All but the manifest itself."""
    history: tuple[HistoryEntry, ...] = ()
    """Oldest first."""

    def file(self, name: str) -> StoredFile | None:
        """The entry of the file `name`, or None."""
        return next((file for file in self.files if file.name == name), None)

    def with_checksums(self, checksums: dict[str, str]) -> Manifest:
        """The same with the checksums of some files, by name."""
        files = tuple(
            replace(file, checksum=checksums.get(file.name, file.checksum)) for file in self.files
        )
        return replace(self, files=files)

    def refusal(self) -> str | None:
        """Why the VM must not be sent or run from here without force, as half a sentence; None if
        it may.
        """
        for entry in self.history:
            if isinstance(entry, Taken):
                if not entry.confirmed:
                    return (
                        f"its taking from {entry.source} at {entry.at.isoformat()} was not "
                        "confirmed, so the source may still have the VM"
                    )
            elif entry.outcome == "done":
                return f"it was given to {entry.destination} at {entry.at.isoformat()}"
            elif entry.outcome == "unknown":
                return (
                    f"it may have been given to {entry.destination} at {entry.at.isoformat()}: "
                    "the outcome is unknown"
                )
        return None

    def encode(self) -> bytes:
        """The manifest as JSON text."""
        compressed = any(file.memory_size is not None for file in self.files)
        document = {
            "version": VERSION if compressed else _WITHOUT_COMPRESSION,
            "running": self.running,
            "files": [_encode_file(file, compressed) for file in self.files],
            "history": [_encode_entry(entry) for entry in self.history],
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Read `raw`, JSON text; ManifestError for anything that `encode` of this version, or of an
        older one, does not write.
        """
        try:
            return cls._decode(raw)
        except DocumentError as error:
            raise ManifestError(error.why) from None

    @classmethod
    def _decode(cls, raw: bytes) -> Manifest:
        where = "the document"
        document, version = load(raw, VERSION)
        found = members(document, {"version", "running", "files", "history"}, where)
        files = tuple(
            _decode_file(entry, f"files[{i}]", version)
            for i, entry in enumerate(member(found, "files", list, where))
        )
        if len({file.name for file in files}) != len(files):
            raise DocumentError("a file is listed twice")
        history = tuple(
            _decode_entry(entry, f"history[{i}]", version)
            for i, entry in enumerate(member(found, "history", list, where))
        )
        return cls(member(found, "running", bool, where), files, history)


def _encode_entry(entry: HistoryEntry) -> dict[str, object]:
    kind = "taken" if isinstance(entry, Taken) else "given"
    return {"event": kind, **asdict(entry), "at": entry.at.isoformat()}


def _encode_file(file: StoredFile, compressed: bool) -> dict[str, object]:
    entry = asdict(file)
    if not compressed:
        del entry["memory_size"]
    return entry


def _decode_file(value: object, where: str, version: int) -> StoredFile:
    names = {"name", "size", "checksum"}
    newer = version > _WITHOUT_COMPRESSION
    found = members(value, names | {"memory_size"} if newer else names, where)
    memory_size = None
    if newer and found.get("memory_size", 0) is not None:
        memory_size = _size(found, "memory_size", where)
    return StoredFile(
        member(found, "name", str, where),
        _size(found, "size", where),
        _text_or_none(found, "checksum", where),
        memory_size,
    )


def _size(found: dict[str, object], name: str, where: str) -> int:
    size: int = member(found, name, int, where)
    if size < 0:
        raise DocumentError(f"{name} of {where} is negative")
    return size


def _decode_entry(value: object, where: str, version: int) -> HistoryEntry:
    if not isinstance(value, dict):
        raise DocumentError(f"{where} is not an object")
    event = member(value, "event", str, where)
    if event == "taken":
        names = {"event", "at", "source", "confirmed"}
        found = members(value, names | {"migration"} if version > 1 else names, where)
        return Taken(
            moment(found, "at", where),
            member(found, "source", str, where),
            member(found, "confirmed", bool, where),
            _text_or_none(found, "migration", where) if version > 1 else None,
        )
    if event == "given":
        found = members(value, {"event", "at", "destination", "outcome", "running"}, where)
        outcome = member(found, "outcome", str, where)
        if outcome not in get_args(Outcome):
            raise DocumentError(f"outcome of {where} is none of {', '.join(get_args(Outcome))}")
        return Given(
            moment(found, "at", where),
            member(found, "destination", str, where),
            cast("Outcome", outcome),
            member(found, "running", bool, where),
        )
    raise DocumentError(f"event of {where} is neither taken nor given")


def _text_or_none(found: dict[str, object], name: str, where: str) -> str | None:
    if found.get(name, "") is None:
        return None
    text: str = member(found, name, str, where)
    return text
