"""Answers as Cloud Hypervisor's client reads them.

No reason phrase in the status line (`ch-remote` takes all of it for a number), `Content-Length` in
exactly that spelling, JSON in ASCII (it decodes pieces of 256 bytes), no body with 204, and errors
as a list of sentences, the outermost first.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from aiomigrate import __version__

__all__ = ["Failure", "answer", "document", "failure", "refused", "stream", "unchanged"]

_SERVER = {
    "Server": f"aiomigrate/{__version__}",
    "X-Content-Type-Options": "nosniff",  # what is JSON or text is no script, whatever is in it
}


class Failure(Exception):
    """A request that fails, with its status and why, the outermost first."""

    def __init__(self, status: int, *why: str) -> None:
        super().__init__(status, *why)
        self.status = status
        self.why = why


def refused(what: str, why: str) -> Failure:
    """Cloud Hypervisor's for what it cannot do with the VM as it is: 500."""
    return Failure(500, "Error from API", what, why)


def answer(
    body: BaseModel | None, *, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """200 with a body, 204 without."""
    if body is None:
        return web.Response(status=204, reason="", headers={**_SERVER, **(headers or {})})
    return _json(200, body.model_dump(mode="json"), headers)


def failure(error: Failure, *, headers: Mapping[str, str] | None = None) -> web.StreamResponse:
    """The status, and the list of sentences."""
    return _json(error.status, list(error.why), headers)


def document(
    text: bytes, content_type: str, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """200 with something that is not JSON, or made before."""
    headers = {**_SERVER, "Content-Type": content_type, **(headers or {})}
    return web.Response(status=200, reason="", body=text, headers=headers)


def unchanged(headers: Mapping[str, str]) -> web.StreamResponse:
    """304: the client has it."""
    return web.Response(status=304, reason="", headers={**_SERVER, **headers})


def stream() -> web.StreamResponse:
    """The beginning of server-sent events."""
    headers = {**_SERVER, "Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    return web.StreamResponse(status=200, reason="", headers=headers)


def _json(
    status: int, value: Mapping[str, Any] | Sequence[str], headers: Mapping[str, str] | None
) -> web.StreamResponse:
    return web.Response(
        status=status,
        reason="",
        body=json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii"),
        headers={**_SERVER, "Content-Type": "application/json", **(headers or {})},
    )
