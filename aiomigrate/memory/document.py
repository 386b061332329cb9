"""Strict reading of our own JSON documents: the manifest of a stored VM, a record of the journal.

A document is an object with a version. A member that is missing, unknown or of a wrong type is a
DocumentError, and so is a newer version, by its number: what decides who owns a VM is not guessed.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

__all__ = ["DocumentError", "load", "member", "members", "moment"]


class DocumentError(ValueError):
    """A document that cannot be read; `why` is the reason as half a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def load(raw: bytes, newest: int) -> tuple[object, int]:
    """Read JSON text: what it holds, and its version, from 1 to `newest`."""
    try:
        document = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"it is not JSON ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise DocumentError("the document is not an object")
    # First of all: what else a newer version holds is not ours to judge.
    version: int = member(document, "version", int, "the document")
    if version > newest:
        raise DocumentError(
            f"version {version} was written by a newer aiomigrate; this one reads {newest}"
        )
    if version < 1:
        raise DocumentError(f"there is no version {version}")
    return document, version


def members(value: object, names: set[str], where: str) -> dict[str, object]:
    """The members of an object, none of them but `names`."""
    if not isinstance(value, dict):
        raise DocumentError(f"{where} is not an object")
    if unknown := value.keys() - names:
        raise DocumentError(f"{where} has an unknown member {min(unknown)!r}")
    return value


def member(container: dict[str, object], name: str, kind: type, where: str) -> Any:
    """A member that must be there and of this type."""
    if name not in container:
        raise DocumentError(f"{where} has no {name}")
    value = container[name]
    # A bool is an int to Python, not to JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DocumentError(f"{name} of {where} is no {kind.__name__}")
    return value


def moment(container: dict[str, object], name: str, where: str) -> datetime:
    """A member that is a time, with its time zone."""
    text: str = member(container, name, str, where)
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise DocumentError(f"{name} of {where} is no ISO 8601 time") from None
    if value.tzinfo is None:
        raise DocumentError(f"{name} of {where} has no time zone")
    return value
