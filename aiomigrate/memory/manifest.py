"""The manifest of a stored VM: `aiomigrate.json`, what the other files should be and where the VM
has been.

The document is JSON with a version. Parsing is strict: a member that is missing, unknown or of a
wrong type is a ManifestError, and so is a newer version, by its number. The history decides whether
the VM may be run from here: a VM must not run twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias, cast, get_args

from aiomigrate.memory.errors import ManifestError

__all__ = ["VERSION", "Given", "HistoryEntry", "Manifest", "Outcome", "StoredFile", "Taken"]

VERSION = 1

Outcome: TypeAlias = Literal["done", "unknown", "failed"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of the stored VM beside the manifest."""

    name: str
    size: int
    """Bytes, holes included."""
    checksum: str | None
    """As `checksum.checksum` gives it; None where it was not computed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The VM was received into this directory."""

    at: datetime
    source: str
    """The peer's address, as text."""
    confirmed: bool
    """Whether the source is known to have read our last answer. If not, it may still run the VM."""


@dataclass(frozen=True, slots=True)
class Given:
    """The VM was sent from this directory, or that was tried."""

    at: datetime
    destination: str
    outcome: Outcome
    running: bool
    """Whether the destination was told to run it."""


HistoryEntry: TypeAlias = Taken | Given


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stored VM's manifest says."""

    running: bool
    """Whether the VM ran when it was taken (Complete), or was paused (CompletePaused)."""
    files: tuple[StoredFile, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    """Oldest first."""

    def file(self, name: str) -> StoredFile | None:
        """The entry of a file, or None."""
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
        document = {
            "version": VERSION,
            "running": self.running,
            "files": [asdict(file) for file in self.files],
            "history": [_encode_entry(entry) for entry in self.history],
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Read the JSON text; ManifestError for anything that `encode` of this version does not
        write.
        """
        try:
            document = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"it is not JSON ({type(error).__name__})") from None
        if isinstance(document, dict):
            # First of all: what else a newer version holds is not ours to judge.
            version = _member(document, "version", int, "the document")
            if version > VERSION:
                raise ManifestError(
                    f"version {version} was written by a newer aiomigrate; this one reads {VERSION}"
                )
            if version != VERSION:
                raise ManifestError(f"there is no version {version}")
        members = _members(document, {"version", "running", "files", "history"}, "the document")
        files = _member(members, "files", list, "the document")
        history = _member(members, "history", list, "the document")
        decoded = tuple(_decode_file(entry, f"files[{i}]") for i, entry in enumerate(files))
        if len({file.name for file in decoded}) != len(decoded):
            raise ManifestError("a file is listed twice")
        return cls(
            running=_member(members, "running", bool, "the document"),
            files=decoded,
            history=tuple(_decode_entry(entry, f"history[{i}]") for i, entry in enumerate(history)),
        )


def _encode_entry(entry: HistoryEntry) -> dict[str, object]:
    kind = "taken" if isinstance(entry, Taken) else "given"
    return {"event": kind, **asdict(entry), "at": entry.at.isoformat()}


def _members(value: object, names: set[str], where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is not an object")
    if unknown := value.keys() - names:
        raise ManifestError(f"{where} has an unknown member {min(unknown)!r}")
    return value


def _member(container: dict[str, object], name: str, kind: type, where: str) -> Any:
    if name not in container:
        raise ManifestError(f"{where} has no {name}")
    value = container[name]
    # A bool is an int to Python, not to JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ManifestError(f"{name} of {where} is no {kind.__name__}")
    return value


def _decode_file(value: object, where: str) -> StoredFile:
    members = _members(value, {"name", "size", "checksum"}, where)
    name: str = _member(members, "name", str, where)
    size: int = _member(members, "size", int, where)
    if size < 0:
        raise ManifestError(f"size of {where} is negative")
    checksum = members.get("checksum", "")
    if checksum is not None:
        checksum = _member(members, "checksum", str, where)
    return StoredFile(name, size, cast("str | None", checksum))


def _decode_entry(value: object, where: str) -> HistoryEntry:
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is not an object")
    event = _member(value, "event", str, where)
    if event == "taken":
        members = _members(value, {"event", "at", "source", "confirmed"}, where)
        return Taken(
            _moment(members, where),
            _member(members, "source", str, where),
            _member(members, "confirmed", bool, where),
        )
    if event == "given":
        members = _members(value, {"event", "at", "destination", "outcome", "running"}, where)
        outcome = _member(members, "outcome", str, where)
        if outcome not in get_args(Outcome):
            raise ManifestError(f"outcome of {where} is none of {', '.join(get_args(Outcome))}")
        return Given(
            _moment(members, where),
            _member(members, "destination", str, where),
            cast("Outcome", outcome),
            _member(members, "running", bool, where),
        )
    raise ManifestError(f"event of {where} is neither taken nor given")


def _moment(members: dict[str, object], where: str) -> datetime:
    text: str = _member(members, "at", str, where)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ManifestError(f"at of {where} is no ISO 8601 time") from None
    if moment.tzinfo is None:
        raise ManifestError(f"at of {where} has no time zone")
    return moment
