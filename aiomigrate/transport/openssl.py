"""OpenSSL's own `SSL_read` and `SSL_write`, for the TLS objects that Python's `ssl` has made.

Python moves one record of 16 KiB a call, and on a fast processor a sixth of a record's time is the
interpreter's (decision 21). A `Vector` calls the C functions itself, for a MiB at a time.
Everything else (contexts, handshakes, certificates, errors) stays Python's.

Python does not say where OpenSSL's object is. In CPython it is the second field of the object that
an `SSLSocket` wraps, before the context (Modules/_ssl.c, PySSLSocket), and is believed only where
the context is found in its place. Where it is not, or OpenSSL is linked in such a way that its
functions cannot be found, records go through Python one by one.
"""

import ctypes
import ssl
import sys
from functools import cache
from importlib import import_module

__all__ = ["OpenSsl"]


_WANTS = frozenset((ssl.SSL_ERROR_WANT_READ, ssl.SSL_ERROR_WANT_WRITE))


class OpenSsl:
    """OpenSSL's side of one `SSLSocket`; of use as long as that is open."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self.handle = handle
        """Address of its `SSL`."""
        self.read = _address(library["SSL_read"])
        self.write = _address(library["SSL_write"])
        """Addresses of C functions `int f(SSL *, void *, int)`."""
        self._get_error = library["SSL_get_error"]
        self._get_error.argtypes = (ctypes.c_void_p, ctypes.c_int)
        self._shutdown = library["SSL_shutdown"]
        self._shutdown.argtypes = (ctypes.c_void_p,)
        self._clear_errors = library["ERR_clear_error"]
        self._has_pending = library["SSL_has_pending"]
        self._has_pending.argtypes = (ctypes.c_void_p,)
        self._state = library["SSL_rstate_string"]  # "RB": it reads the body of a record
        self._state.argtypes = (ctypes.c_void_p,)
        self._state.restype = ctypes.c_char_p

    @classmethod
    def of(cls, tls: ssl.SSLSocket) -> "OpenSsl | None":
        """That of a TLS socket; None where it cannot be found."""
        library, inner = _library(), getattr(tls, "_sslobj", None)
        if library is None or inner is None:
            return None
        fields = _Fields.from_address(id(inner) + object.__basicsize__)
        return cls(library, fields.ssl) if fields.context == id(tls.context) else None

    def would_wait(self) -> bool:
        """Whether the call that has just moved nothing, in this thread, has to wait."""
        return self._get_error(self.handle, -1) in _WANTS

    def inside_record(self) -> bool:
        """Whether a part of a record was taken from the socket, and not all of it, when the last
        read found no more.
        """
        return self._state(self.handle) == b"RB" or bool(self._has_pending(self.handle))

    def forget_errors(self) -> None:
        """Take this thread's errors: left, they would be told to the next connection that asks."""
        self._clear_errors()

    def say_farewell(self) -> None:
        """Send a close_notify if that can be done at once, and look for no answer: what `unwrap`
        of Python's does, which takes content that comes for a mistake.
        """
        self._shutdown(self.handle)
        self.forget_errors()

    def broke(self) -> bool:
        """Whether it failed at the socket, with an errno."""
        return bool(self._get_error(self.handle, -1) == ssl.SSL_ERROR_SYSCALL)


class _Fields(ctypes.Structure):
    """The beginning of CPython's PySSLSocket, behind the header that every object has."""

    _fields_ = (
        ("socket", ctypes.c_void_p),
        ("ssl", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


@cache
def _library() -> ctypes.CDLL | None:
    """What Python's `ssl` itself is linked with, if it is linked dynamically."""
    path = getattr(import_module("_ssl"), "__file__", None)
    if sys.implementation.name != "cpython" or path is None:
        return None
    library = ctypes.CDLL(path)
    try:
        version = library["OpenSSL_version"]
    except AttributeError:
        return None
    version.restype = ctypes.c_char_p
    return library if version(0) == ssl.OPENSSL_VERSION.encode() else None


def _address(function: "ctypes._NamedFuncPointer") -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
