"""For people: the page to watch migrations, its files, and the reference of the API."""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from aiohttp import web

from aiomigrate.api.answers import Failure, document, unchanged
from aiomigrate.api.reference import make_reference
from aiomigrate.web import ASSETS, PAGE, POLICY, Asset

__all__ = ["add_pages"]

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # kept, and asked for anew by its ETag: the next version is seen
    "Referrer-Policy": "no-referrer",
}
_STYLE = re.compile("<style>(.*?)</style>", re.DOTALL)


def add_pages(app: web.Application, openapi: Mapping[str, Any]) -> None:
    """Serve them."""
    reference = make_reference(openapi)
    app.router.add_get("/", _serve(PAGE))
    app.router.add_get("/reference", _serve(_reference(reference), _reference_policy(reference)))
    app.router.add_get("/assets/{name}", _serve_asset)


def _serve(asset: Asset, policy: str = POLICY) -> _Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        return _answer(request, asset, policy)

    return serve


async def _serve_asset(request: web.Request) -> web.StreamResponse:
    asset = ASSETS.get(request.match_info["name"])
    if asset is None:
        raise Failure(404, "there is no such file")
    return _answer(request, asset, POLICY)


def _answer(request: web.Request, asset: Asset, policy: str) -> web.StreamResponse:
    headers = {**_HEADERS, "Content-Security-Policy": policy, "ETag": asset.etag}
    known = request.if_none_match or ()
    if any(asset.etag == f'"{one.value}"' or one.value == "*" for one in known):
        return unchanged(headers)
    return document(asset.content, asset.content_type, headers)


def _reference(text: str) -> Asset:
    return Asset(text.encode(), "text/html; charset=utf-8")


def _reference_policy(text: str) -> str:
    """The reference has no script, and one style, which is in it."""
    styles = (hashlib.sha256(style.encode()).digest() for style in _STYLE.findall(text))
    named = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in styles)
    return f"default-src 'none'; style-src {named}; base-uri 'none'; frame-ancestors 'none'"
