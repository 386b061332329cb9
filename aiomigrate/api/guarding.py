"""Which requests a service takes from a browser: those of its own page only.

A service on a tcp address without TLS, or one that is reached through `ssh -L`, is reachable for
every page that its operator's browser shows. Such a page can send what it likes to any address, but
it cannot lie about where it comes from, so three things are looked at before a request is read:

* `Origin` and `Sec-Fetch-Site`, which browsers add: another page's requests are refused. A link to
  this page is none of those.
* `Host`: a page whose name's owner has led that name to this address (DNS rebinding) passes for one
  of ours. So a name has to be one that no stranger can own: an address, a name without a dot, such
  as `localhost`, or this host's own. Over TLS the certificate sees to that.
* `Content-Type` of a body: what a browser sends without asking first is no JSON. Cloud Hypervisor's
  client names no type.

What is no browser (curl, Prometheus, `ch-remote`) sends nothing of these but `Host` (decision 20).
"""

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiohttp import web

from aiomigrate.api.answers import Failure

__all__ = ["guarding"]

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[\w.-]*)(?::\d+)?", re.ASCII)
_SCHEMES = ("http://", "https://")
_OURS = frozenset({"same-origin", "none"})
"""Of Sec-Fetch-Site: this page's own, and what a person has typed."""


@web.middleware
async def guarding(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Refuse what only a page of somebody else's sends."""
    host = request.headers.get("Host")
    if host is not None:  # every browser names one
        _require_our_page(request, host)
        if not _is_secure(request):
            _require_known_name(host)
    if request.body_exists and request.headers.get("Content-Type"):
        _require_json(request.content_type)
    return await handler(request)


def _is_secure(request: web.Request) -> bool:
    """Whether it came through a `SecureDoor`: by a socket pair, which has no name."""
    return request.transport is not None and request.transport.get_extra_info("sockname") == ""


def _require_our_page(request: web.Request, host: str) -> None:
    origin = request.headers.get("Origin")
    if origin is not None and origin not in {f"{scheme}{host}" for scheme in _SCHEMES}:
        raise Failure(403, f"a page of {origin} may not use this service; its own page may")
    site = request.headers.get("Sec-Fetch-Site", "none")
    followed = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if site not in _OURS and not followed:
        raise Failure(403, "another page may not use this service; its own page may")


def _require_known_name(host: str) -> None:
    match = _HOST.fullmatch(host)
    if match is None or not _is_known(match["name"].strip("[]").lower()):
        raise Failure(
            403,
            f"this service is not called {host!r}: use its address, localhost, or this host's "
            "own name, or TLS (--tls-dir)",
        )


def _is_known(name: str) -> bool:
    if "." not in name and ":" not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.endswith(".localhost") or name == socket.gethostname().lower()
    return True


def _require_json(content_type: str) -> None:
    if content_type != "application/json":
        raise Failure(415, f"a body is application/json, not {content_type}")
