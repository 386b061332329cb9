"""Certificates and keys: what one side of a TLS connection shows, and what it demands of the other.

Mutual TLS 1.3, with Cloud Hypervisor's file names (its vm-migration/src/tls.rs). Both sides prove
who they are to the authorities in `ca-cert.pem`; the source besides checks that the destination's
certificate was made for the host that it was told to connect to. All files are read, and checked,
before anything is sent.
"""

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, cast

from aiomigrate.transport.scratch import Scratch
from aiomigrate.transport.tls_errors import in_words

__all__ = [
    "Certificate",
    "Identity",
    "TlsFilesError",
    "destination_context",
    "source_context",
]

T = TypeVar("T")

_AUTHORITIES = "ca-cert.pem"
_SOURCE = ("client-cert.pem", "client-key.pem")
_DESTINATION = ("server-cert.pem", "server-key.pem")
_THREADS = 2
"""That handshakes run in: a step with RSA of 4,096 bits was 8 ms, and a migration has up to 129 of
them at once; with two threads they are over in half a second."""


class TlsFilesError(ValueError):
    """A directory or a file in it is of no use; the message names it, and why."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a peer has shown, and was believed."""

    encoded: bytes
    """In DER."""
    subject: str = field(compare=False)
    """For people, e.g. `organizationName=Example, commonName=host-7`; may be empty."""

    @classmethod
    def of(cls, tls: ssl.SSLSocket) -> "Certificate":
        """The peer's on a connection whose handshake is over."""
        told = tls.getpeercert() or {}
        names = cast("tuple[tuple[tuple[str, str], ...], ...]", told.get("subject", ()))
        subject = ", ".join(f"{key}={value}" for name in names for key, value in name)
        return cls(tls.getpeercert(binary_form=True) or b"", subject)


class Identity:
    """One side's certificate, key and authorities, and what its connections share: threads for
    handshakes, and a buffer. Of one event loop.

    Whoever makes one closes it.
    """

    def __init__(self, context: ssl.SSLContext, host: str | None = None) -> None:
        """`context` is made by `source_context` or `destination_context`; `host` is the name or
        address that the destination is to prove to have, None if it is us.
        """
        self._context = context
        self._host = None if host is None else host.partition("%")[0]  # no zone of an IPv6 address
        self.scratch = Scratch()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aiomigrate-tls")

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """The TLS of one connection, by a descriptor of its own. OSError."""
        own = sock.dup()
        try:
            return self._context.wrap_socket(
                own,
                server_side=self._host is None,
                server_hostname=self._host,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,  # else a stream that was cut is one that was ended
            )
        except BaseException:
            own.close()
            raise

    async def run(self, step: Callable[[], T]) -> T:
        """Run a step of a handshake in a thread; cancellations are passed on once it has ended: it
        uses the connection's TLS object and descriptor.
        """
        job = asyncio.get_running_loop().run_in_executor(self._threads, step)
        cancelled: asyncio.CancelledError | None = None
        while not job.done():
            try:
                await asyncio.wait([job])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            job.exception()
            raise cancelled
        return job.result()

    def close(self) -> None:
        """Every connection is closed: let the threads end."""
        self.scratch.close()
        self._threads.shutdown(wait=False)


def source_context(directory: str | os.PathLike[str]) -> ssl.SSLContext:
    """What a source shows and demands, from its files: waits for the disk. `TlsFilesError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it demands a certificate of that host
    context.hostname_checks_common_name = False  # as rustls does it; RFC 9525, section 6.3
    _load(context, directory, _SOURCE)
    return context


def destination_context(directory: str | os.PathLike[str]) -> ssl.SSLContext:
    """The same for a destination."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # no session is resumed: every connection proves who it is
    _load(context, directory, _DESTINATION)
    return context


def _load(
    context: ssl.SSLContext, directory: str | os.PathLike[str], names: tuple[str, str]
) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Else OpenSSL takes a stream that was cut for one that was ended.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    # Whatever ca-cert.pem holds is trusted, an intermediate authority too, as rustls does it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise TlsFilesError(f"{os.fspath(directory)}: the TLS directory is no directory")
    except OSError as error:
        raise TlsFilesError(
            f"{os.fspath(directory)}: the TLS directory: {error.strerror}"
        ) from None
    authorities, certificate, key = (
        os.path.join(directory, name) for name in (_AUTHORITIES, *names)
    )
    for path in (authorities, certificate, key):
        _check(path)
    _load_certificates(context, authorities)
    _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate)
    try:
        context.load_cert_chain(certificate, key, _no_password(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsFilesError(f"{key}: it is not the key of {names[0]}") from None
        if error.reason is None or error.reason in {"PEM lib", "NO_START_LINE"}:
            raise TlsFilesError(f"{key}: it holds no private key in PEM") from None
        raise TlsFilesError(f"{certificate}, {key}: {in_words(error)}") from None


def _check(path: str) -> None:
    """A regular file that we may read: opening a fifo would wait for somebody to write to it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise TlsFilesError(f"{path}: it is no regular file")
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise TlsFilesError(f"{path}: {error.strerror}") from None


def _load_certificates(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise TlsFilesError(f"{path}: it holds no certificate in PEM") from None


def _no_password(key: str) -> Callable[[], str]:
    """Called for an encrypted key, instead of asking at the terminal."""

    def ask() -> str:
        raise TlsFilesError(f"{key}: the key is encrypted, and there is nobody to ask")

    return ask
