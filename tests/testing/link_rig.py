"""A network of a namespace and its two ends, or a skip with the reason why there is none."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from aiomigrate.testing import Link, LinkUnavailable
from tests.support.leaks import Resources

__all__ = ["TIMEOUT_S", "connected", "link"]

TIMEOUT_S = 60.0


@contextmanager
def link(**shape: float) -> Iterator[Link]:
    before = Resources.now()
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Link(**shape))
        except LinkUnavailable as error:
            pytest.skip(str(error))
        yield made
    assert Resources.left_since(before) == []


@contextmanager
def connected(over: Link) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A near and a far end."""
    with over.far.call(socket.socket) as listener, over.near.call(socket.socket) as near:
        listener.bind((over.far_address, 0))
        listener.listen()
        near.settimeout(TIMEOUT_S)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            far.settimeout(TIMEOUT_S)
            yield near, far
