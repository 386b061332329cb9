"""The service over HTTP: aiohttp's application, and the two ways to listen.

Every request is served in a task of its own. A client that goes away ends only its own request.
A unix socket is 0600 from the moment it exists; tcp is for those who show a certificate (mutual TLS
1.3, with the files of a migration's destination), or is asked for as insecure.
"""

import asyncio
import fcntl
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeAlias, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from pydantic import BaseModel, ValidationError

from aiomigrate import UsageError
from aiomigrate.api.answers import Failure, answer, document, failure, stream
from aiomigrate.api.events import Event, EventBus, Listener, TooManyListeners, encode
from aiomigrate.api.guarding import guarding
from aiomigrate.api.metrics import CONTENT_TYPE, Metrics
from aiomigrate.api.openapi import make_document
from aiomigrate.api.operations import BASE, OPERATIONS, QUERY, Call, Operation
from aiomigrate.api.pages import add_pages
from aiomigrate.api.secure import SecureDoor
from aiomigrate.api.service import Service
from aiomigrate.credentials import read_context
from aiomigrate.transport import (
    AddressError,
    Identity,
    TcpAddress,
    destination_context,
    parse_address,
)

__all__ = ["open_tcp", "open_unix", "serve"]

_MAX_BODY_BYTES = 4 << 20
"""Cloud Hypervisor's limit."""
_BODY_S = 30.0
"""For a body to be whole."""
_IDLE_S = 5.0
"""After so long without events a listener gets a heartbeat: each end notices so if the other one is
gone ..."""
_STUCK_S = 60.0
"""... and one that takes nothing for so long is let go."""
_BACKLOG = 1024
"""Clients that may connect at once: all that listen to events come back after a restart."""
_GOODBYE_S = 2.0
"""For answers to leave when the service ends; nothing waits for a migration then."""

log = logging.getLogger("aiomigrate.api.http")
log.addFilter(lambda record: not _is_bad_request(record))

_Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _is_bad_request(record: logging.LogRecord) -> bool:
    """Whether it is about bytes that are no HTTP: aiohttp calls that an error of ours."""
    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, HttpProcessingError)


def _operate(service: Service, operation: Operation) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        for name in request.query:
            if name not in operation.asks:
                raise Failure(400, "Bad Request", f"unknown parameter {name!r}")
        named = {name: request.query.get(name) for name in QUERY}
        call = Call(service, **named, body=await _read(request, operation.body))
        done = await operation(call)
        if done.location is None:
            return answer(done.body)
        return answer(
            done.body, headers={"Location": f"{BASE}/vm.migration?migration={done.location}"}
        )

    return handle


async def _read(request: web.Request, model: type[BaseModel] | None) -> BaseModel | None:
    try:
        async with asyncio.timeout(_BODY_S):
            body = await request.read()
    except TimeoutError:
        raise Failure(408, f"the body did not come in {_BODY_S:g} s") from None
    if model is None:
        if body:
            raise Failure(400, "Bad Request", "this takes no body")
        return None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise Failure(400, "Failed to deserialize JSON", *_sentences(error, model)) from None


def _sentences(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """What is wrong with which field, and what the document says of that: what to do instead."""
    for one in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(map(str, one["loc"]))
        if not where:
            yield one["msg"]
            continue
        field = model.model_fields.get(str(one["loc"][0]))
        meant = "" if field is None else " ".join((field.description or "").split())
        yield f"{where}: {one['msg']}" + (f". {meant}" if meant else "")


def _listen(bus: EventBus) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = stream()
        try:
            with bus.listen() as listener:
                await response.prepare(request)
                await _pass_on(listener, response)
        except TooManyListeners:
            raise Failure(429, "there are too many listeners") from None
        except (ConnectionError, TimeoutError):  # it is gone, or as good as that
            if request.transport is not None:
                request.transport.abort()
        return response

    return handle


async def _pass_on(listener: Listener, response: web.StreamResponse) -> None:
    """Write events until there are no more. TimeoutError if they are not taken."""
    events = b": listening\n\n"
    while events:
        async with asyncio.timeout(_STUCK_S):
            await response.write(events)
        try:
            async with asyncio.timeout(_IDLE_S):
                events = await listener.take()
        except TimeoutError:
            events = encode(Event.HEARTBEAT, {})


@web.middleware
async def _answering(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Errors of requests, and of aiohttp's about them, as answers of ours."""
    try:
        return await handler(request)
    except Failure as error:
        return failure(error)
    except web.HTTPMethodNotAllowed as error:
        # Cloud Hypervisor never says 405, and ours are told apart by their names only.
        allow = {"Allow": ", ".join(sorted(error.allowed_methods))}
        theirs = any(op.failing for op in OPERATIONS if op.path == request.path)
        return failure(Failure(400 if theirs else 405, "Bad Request"), headers=allow)
    except web.HTTPException as error:
        return failure(Failure(error.status, error.reason))
    except Exception as error:
        log.exception("%s %s", request.method, request.path)
        return failure(Failure(500, "a fault of the service", repr(error)))


def _application(service: Service) -> web.Application:
    app = web.Application(middlewares=[_answering, guarding], client_max_size=_MAX_BODY_BYTES)
    for operation in OPERATIONS:
        app.router.add_route(operation.method, operation.path, _operate(service, operation))
    openapi = make_document()
    metrics = Metrics(service)

    async def serve_openapi(_: web.Request) -> web.StreamResponse:
        return document(json.dumps(openapi, indent=1).encode(), "application/json")

    async def serve_metrics(_: web.Request) -> web.StreamResponse:
        return document(metrics.render(), CONTENT_TYPE)

    app.router.add_route("GET", "/openapi.json", serve_openapi)
    app.router.add_route("GET", "/metrics", serve_metrics)
    app.router.add_route("GET", "/events", _listen(service.bus))
    add_pages(app, openapi)
    return app


@asynccontextmanager
async def serve(
    service: Service,
    *listeners: socket.socket,
    tls_dir: str | os.PathLike[str] | None = None,
    insecure: bool = False,
) -> AsyncIterator[None]:
    """Serve on bound `listeners`, which stay the caller's to close.

    Those of tcp are for clients with a certificate: `tls_dir` has `ca-cert.pem`, `server-cert.pem`
    and `server-key.pem`. Without it they have to be `insecure`: whoever reaches one may do
    everything. UsageError for one that is neither, and for files of no use; RuntimeError if aiohttp
    makes no server.

    Enters `service`. At the end migrations are cancelled, or waited for where a VM is changing
    hands, and then clients are let go.
    """
    context = None if tls_dir is None else await read_context(destination_context, tls_dir)
    if not (context or insecure) and any(map(_is_tcp, listeners)):
        raise UsageError(
            "whoever reaches a tcp address may do everything: it needs a TLS directory, for those "
            "who have a certificate, or to be called insecure (--tls-dir, --insecure)"
        )
    runner = web.AppRunner(
        _application(service),
        access_log=None,
        logger=log,
        handle_signals=False,
        shutdown_timeout=_GOODBYE_S,
    )
    await runner.setup()
    server = cast("Callable[[], asyncio.Protocol]", runner.server)  # set by `setup`
    identity = None if context is None else Identity(context)
    doors: list[SecureDoor] = []
    try:
        async with service:
            sites = []
            for one in listeners:
                if identity is not None and _is_tcp(one):
                    doors.append(SecureDoor(one, identity, _BACKLOG, server))
                else:
                    sites.append(web.SockSite(runner, one, backlog=_BACKLOG))
            for site in sites:
                await site.start()
            try:
                yield
            finally:
                for site in sites:
                    await site.stop()
                for door in doors:
                    await door.stop()
    finally:
        await runner.cleanup()
        for door in doors:
            await door.close(_GOODBYE_S)
        if identity is not None:
            identity.close()


def _is_tcp(listener: socket.socket) -> bool:
    return listener.family != socket.AF_UNIX


@contextmanager
def open_unix(path: str) -> Iterator[socket.socket]:
    """A bound unix socket at `path` that only our user can connect to.

    As Cloud Hypervisor does, a lock on `<path>.lock` (which stays) tells a service that lives from
    a socket that was left behind. UsageError if there is one, or something else is in the way.
    """
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"{path}.lock: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path}: another service listens there") from None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            os.fchmod(listener.fileno(), 0o600)  # bind makes the file with the socket's mode
            _unlink_socket(path)
            try:
                listener.bind(path)
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}") from None
            try:
                yield listener
            finally:
                _unlink_socket(path)
    finally:
        os.close(lock)


def _unlink_socket(path: str) -> None:
    """What is no socket is left, and is in the way of the one that is to be bound."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)


@contextmanager
def open_tcp(address: str) -> Iterator[socket.socket]:
    """A socket bound to `tcp:HOST:PORT`.

    UsageError for another address, or one that cannot be had.
    """
    try:
        listener = _bound(address)
    except (AddressError, OSError) as error:
        raise UsageError(f"{address}: {error}") from None
    with listener:
        yield listener


def _bound(address: str) -> socket.socket:
    parsed = parse_address(address, listening=True)
    if not isinstance(parsed, TcpAddress):
        raise UsageError(f"{address!r} is no tcp address")
    found = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
    family, _, _, _, where = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except BaseException:
        listener.close()
        raise
    return listener
