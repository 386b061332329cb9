"""`aiomigrate watch`: a migration of a service, shown as if it were our own, until it ends."""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiomigrate.cli.output import ProgressMode, open_output
from aiomigrate.cli.remote import Client, Meant, asking
from aiomigrate.cli.status import ExitStatus

__all__ = ["run"]

_EVERY_S = 0.25
"""What a person's eye follows, of a service on the same machine."""
_STATUS = {
    "done": ExitStatus.DONE,
    "failed": ExitStatus.FAILED,
    "cancelled": ExitStatus.CANCELLED,
    "unknown": ExitStatus.UNKNOWN,
}


def run(socket: str, meant: Meant, mode: ProgressMode) -> ExitStatus:
    """Watch."""

    async def ask(client: Client) -> ExitStatus:
        one = await client.ask("GET", "vm.migration", meant.query)
        query = {"migration": one["id"]}
        with open_output(mode, _title(one)) as output:
            while True:
                if one["progress"] is not None:
                    output.progress(one["progress"])
                if one["state"] != "running":
                    break
                await asyncio.sleep(_EVERY_S)
                one = await client.ask("GET", "vm.migration", query)
            status = _STATUS[one["state"]]
            if one["report"] is None:
                account = one["account"] or {}
                output.tell(
                    "error",
                    error=one["error"],
                    owner=one["owner"],
                    status=int(status),
                    **account,
                )
                output.say(one["error"])
            else:
                output.tell("report", summary=_title(one), status=int(status), **one["report"])
        return status

    return asking(socket, ask)


def _title(one: Mapping[str, Any]) -> str:
    way = "to" if one["direction"] == "send" else "at"
    return f"{one['direction']} {one['vm']} {way} {one['url']}"
