"""Reports in files: what commands that migrate print as JSON, and what a service says.

A file is foreign input: it is made into the engine's own objects, member by member, by the types
that these declare. What is wrong is named by its place. Members that are missing get their defaults
where there are any, and others that are not known are passed over: reports of other versions can be
read.
"""

import json
import sys
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from aiomigrate.errors import Owner
from aiomigrate.progress import Account, Report

__all__ = ["Ended", "ReportError", "load"]

_MAX_BYTES = 256 << 20
"""A day of progress, and more than a report can be."""
_TOO_LARGE = 1 << 64
_TOO_LARGE_A_FLOAT = 1e30
"""No size, rate or time is: so that sums and shares of them are numbers, too."""
_SHOWN = 40
"""Characters of what is wrong."""
_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "a list",
}


class ReportError(Exception):
    """A file that is no report. The message is a sentence that names file and place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A migration as a file tells of it: one that has ended, or the state of one that goes on."""

    title: str
    """What it was, if that is told; else empty."""
    owner: Owner | None
    """Who has the VM; None while that is still to be seen."""
    error: str
    """Why it has failed; empty where it has not."""
    account: Account
    """A Report of one that succeeded."""

    @property
    def report(self) -> Report | None:
        """Of one that succeeded."""
        return self.account if isinstance(self.account, Report) else None


def load(path: str) -> Ended:
    """Read a report from a file, `-`: standard input. ReportError for what is none."""
    place = "standard input" if path == "-" else path
    try:
        text = _read(path)
        line, value = _parse(text)
        if line:
            place = f"{place}, line {line}"
        return _interpret(value)
    except _Wrong as wrong:
        raise ReportError(f"{place}: {wrong}") from None
    except OSError as error:
        raise ReportError(f"{place}: {error.strerror or error}") from None


class _Wrong(Exception):
    """What is wrong, and in which member."""


def _read(path: str) -> str:
    if path == "-":
        data = sys.stdin.buffer.read(_MAX_BYTES + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise _Wrong(f"no report: longer than {_MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _Wrong(f"no report: byte {error.start} is no UTF-8") from None


def _parse(text: str) -> tuple[int, Any]:
    """(0, the JSON value that the whole text is), or else (number, value) of its last line."""
    if not text.strip():
        raise _Wrong("it is empty: a command that migrates prints its report at its end")
    try:
        return 0, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # no JSON, too long a number
        lines = text.rstrip().splitlines()
    try:
        return len(lines), json.loads(lines[-1], parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise _Wrong(f"no report: line {len(lines)}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"no report: {error}") from None


def _refuse(constant: str) -> float:
    raise _Wrong(f"no report: {constant} is no number of JSON")


def _interpret(value: Any) -> Ended:
    match value:
        case list():
            raise _Wrong("a list, which has no report in full: save one migration, by its id")
        case {"event": "report"}:
            return _succeeded(value, "", _text(value, "summary"))
        case {"event": "error"}:
            return _failed(value)
        case {"event": str(event)}:
            raise _Wrong(f"the last thing told is {event!r}: it had not ended, or was killed")
        case {"direction": str(direction), "vm": str(vm), "url": str(url), "report": told}:
            return _of_service(value, f"{direction} {vm}, {url}", told)
        case {"owner": _, "downtime_ms": _}:
            return _succeeded(value, "", "")
        case _:
            raise _Wrong("no report of a migration")


def _of_service(value: dict[str, Any], title: str, told: Any) -> Ended:
    if told is not None:
        return _succeeded(told, "report", title)
    account, owner = value.get("account"), value.get("owner")
    if account is None:
        raise _Wrong("a migration of which nothing is told yet")
    return Ended(
        title=title,
        owner=None if owner is None else _made(Owner, owner, "owner"),
        error=_text(value, "error"),
        account=_made(Account, account, "account"),
    )


def _succeeded(value: Any, where: str, title: str) -> Ended:
    report = _made(Report, value, where)
    return Ended(title=title, owner=report.owner, error="", account=report)


def _failed(value: dict[str, Any]) -> Ended:
    error = _text(value, "error")
    if "history" not in value:
        raise _Wrong(f"nothing was begun, so there is no report: {error}")
    return Ended(
        title="",
        owner=_made(Owner, value.get("owner"), "owner"),
        error=error,
        account=_made(Account, value, ""),
    )


def _text(value: dict[str, Any], name: str) -> str:
    """A member that is text, may be null, and may be missing."""
    text = value.get(name)
    return "" if text is None else str(_made(str, text, name))


def _made(kind: Any, value: Any, where: str) -> Any:
    """What `kind`, a dataclass, an enum or a plain type, is in JSON, made into that."""
    arguments = get_args(kind)
    origin = get_origin(kind) or kind
    if origin is UnionType:  # with None alone, in what is read here
        (one,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _made(one, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_made(arguments[0], one, f"{where}[{at}]") for at, one in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _made(arguments[1], one, _member(where, name)) for name, one in value.items()}
    if is_dataclass(origin) and isinstance(value, dict):
        return _object(kind, value, where)
    if issubclass(origin, StrEnum) and value in list(origin):
        return origin(value)
    if origin is float and type(value) in {int, float} and abs(value) < _TOO_LARGE_A_FLOAT:
        return float(value)
    if origin is int and type(value) is int and abs(value) < _TOO_LARGE:
        return value
    if origin in {str, bool} and type(value) is origin:
        return value
    raise _Wrong(f"{where or 'it'} is not {_name(origin)}: {_shown(value)}")


def _object(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    members = {}
    for field in fields(kind):
        if field.name in value:
            members[field.name] = _made(
                hints[field.name], value[field.name], _member(where, field.name)
            )
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Wrong(f"{_member(where, field.name)} is missing")
    return kind(**members)


def _member(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(kind: Any) -> str:
    if issubclass(kind, StrEnum):
        return f"one of {', '.join(kind)}"
    return _NAMES.get(kind, "an object")


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
