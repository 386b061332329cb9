"""`aiomigrate ps`, `cancel`, `tune` and `outcome --api-socket`: what a service is asked over its
socket.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiomigrate.cli.status import ExitStatus
from aiomigrate.cli.text import one_line, parse_size, size_text, time_text

__all__ = ["Client", "Meant", "ServiceError", "asking", "cancel", "outcome", "ps", "tune"]

_BASE = "http://service/api/v1"
"""Over a unix socket no host is looked up."""
_ANSWER_S = 330.0
"""For any answer: over what the engine allows for undoing a migration."""
_NOT_ALLOWED = 409
_WIDEST = 2000
"""Columns of a list, over what its longest line has: an id that is cut is none, so a terminal wraps
what is longer than its lines."""


class ServiceError(Exception):
    """The service refused, or is not there. The message is a sentence."""

    def __init__(self, why: str, status: int = 0) -> None:
        super().__init__(why, status)
        self.why = why
        self.status = status

    def __str__(self) -> str:
        return self.why


@dataclass(frozen=True, slots=True)
class Meant:
    """Which migration: by its id, or the newest of a VM; without both, of the service's."""

    migration: str | None
    vm: str | None

    @property
    def query(self) -> dict[str, str]:
        """As the API takes it."""
        both = {"migration": self.migration, "vm": self.vm}
        return {name: value for name, value in both.items() if value is not None}


class Client:
    """Asks one service. Made by `asking`."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    async def ask(
        self,
        method: str,
        name: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """The answer's JSON, or None. ServiceError if there is none, or it is an error."""
        import aiohttp

        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(self._socket),
                    timeout=aiohttp.ClientTimeout(total=_ANSWER_S),
                ) as session,
                session.request(
                    method, f"{_BASE}/{name}", params=dict(query or {}), json=body
                ) as response,
            ):
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServiceError(f"{self._socket}: no service answers: {error}") from None
        value: Any = json.loads(text) if text else None
        if response.ok:
            return value
        raise ServiceError(f"{self._socket}: {': '.join(value)}", response.status)


def asking(socket: str, ask: Callable[[Client], Coroutine[Any, Any, ExitStatus]]) -> ExitStatus:
    """Run `ask`; a ServiceError is told in one sentence: a failure if the migration, as it is, does
    not allow it, wrong usage else.
    """
    try:
        return asyncio.run(ask(Client(socket)))
    except ServiceError as error:
        print(f"aiomigrate: {one_line(error.why)}", file=sys.stderr)
        return ExitStatus.FAILED if error.status == _NOT_ALLOWED else ExitStatus.USAGE


def ps(socket: str, *, as_json: bool) -> ExitStatus:
    """Print all migrations."""

    async def ask(client: Client) -> ExitStatus:
        found = await client.ask("GET", "vm.migrations")
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            _print(found)
        return ExitStatus.DONE

    return asking(socket, ask)


def _print(found: list[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("ID", "VM", "WAY", "STATE", "DONE", "MOVED", "SINCE"):
        table.add_column(title, no_wrap=True)
    for one in found:
        progress = one["progress"] or {"fraction": 0.0, "bytes_done": 0}
        way = "to" if one["direction"] == "send" else "at"
        began = datetime.fromisoformat(one["began"])
        ended = datetime.fromisoformat(one["ended"]) if one["ended"] else datetime.now(began.tzinfo)
        table.add_row(
            one["id"],
            one_line(one["vm"]),
            one_line(f"{way} {one['url']}"),
            one["state"],
            f"{progress['fraction']:.0%}",
            size_text(progress["bytes_done"]),
            time_text((ended - began).total_seconds()),
        )
    Console(highlight=False, width=_WIDEST).print(table)


def cancel(socket: str, meant: Meant) -> ExitStatus:
    """Cancel, and say where the VM is."""

    async def ask(client: Client) -> ExitStatus:
        one = await client.ask("PUT", "vm.cancel-migration", meant.query)
        print(one_line(f"{one['id']}: {one['error']}"))
        return ExitStatus.DONE

    return asking(socket, ask)


def tune(socket: str, meant: Meant, changes: Mapping[str, Any]) -> ExitStatus:
    """Change what is not None; `rate_limit` is a size as people write it."""

    async def ask(client: Client) -> ExitStatus:
        body = {name: value for name, value in changes.items() if value is not None}
        if "rate_limit" in body:
            try:
                body["rate_limit"] = parse_size(body["rate_limit"])
            except ValueError as error:
                raise ServiceError(str(error)) from None
        await client.ask("PUT", "vm.tune-migration", meant.query, body)
        return ExitStatus.DONE

    return asking(socket, ask)


def outcome(socket: str, meant: Meant, *, as_json: bool) -> ExitStatus:
    """Print who has the VM."""

    async def ask(client: Client) -> ExitStatus:
        one = await client.ask("GET", "vm.migration", meant.query)
        if as_json:
            print(json.dumps(one, indent=2))
        else:
            why = one["error"] or f"it is {one['state']}"
            owner = one["owner"] or "unknown"
            who = "unknown who has the VM" if owner == "unknown" else f"the VM is with the {owner}"
            print(one_line(f"{one['id']}  {who}: {why}"))
        known = one["owner"] not in {None, "unknown"}
        return ExitStatus.DONE if known else ExitStatus.UNKNOWN

    return asking(socket, ask)
