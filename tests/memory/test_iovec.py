"""IoVector against real system calls and plain bytes."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiomigrate.memory.iovec import IOV_MAX, PIECE, IoVector

_libc = ctypes.CDLL(None, use_errno=True)


def drain(vector: IoVector, offers: list[int], most: int) -> bytes:
    """Write a vector into a memfd, counting at most `most` bytes of each call as taken."""
    fd = os.memfd_create("drain")
    try:
        done = 0
        while vector.remaining:
            address, entries, size = vector.window(offers[0])
            offers.append(offers.pop(0))
            assert 0 < entries <= IOV_MAX
            assert _libc.pwritev(fd, ctypes.c_void_p(address), entries, ctypes.c_long(done)) == size
            taken = min(size, most)
            vector.advance(taken)
            done += taken
        return os.pread(fd, done, 0)
    finally:
        os.close(fd)


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.lists(st.integers(0, 80), min_size=1, max_size=4),
    st.integers(1, 90),
)
def test_partial_writes_lose_and_repeat_nothing(
    buffers: list[bytes], offers: list[int], most: int
) -> None:
    vector = IoVector.of_buffers(buffers)
    assert vector.remaining == sum(map(len, buffers))
    assert drain(vector, offers, most) == b"".join(buffers)
    assert vector.window(100)[1:] == (0, 0)


def test_long_buffers_are_cut_into_pieces() -> None:
    data = os.urandom(3 * PIECE + 17)
    vector = IoVector.of_buffers([data])
    assert vector.window(1)[1:] == (1, PIECE)
    assert vector.window(2 * PIECE + 5)[1:] == (2, 2 * PIECE)
    assert drain(vector, [PIECE], PIECE - 1) == data


def test_a_window_has_at_most_iov_max_entries() -> None:
    vector = IoVector.of_buffers([b"x"] * (IOV_MAX + 3))
    assert vector.window(1 << 30)[1:] == (IOV_MAX, IOV_MAX)
    assert drain(vector, [1 << 30], 1 << 30) == b"x" * (IOV_MAX + 3)


def test_all_kinds_of_buffers() -> None:
    table = np.array([1, 2], np.uint64)
    vector = IoVector.of_buffers([b"", bytearray(b"ab"), memoryview(b"cd"), table])
    assert drain(vector, [3], 2) == b"abcd" + table.tobytes()


def test_buffers_live_as_long_as_the_vector() -> None:
    class Bytes(bytearray):
        pass

    data = Bytes(b"abc")
    gone = weakref.ref(data)
    vector = IoVector.of_buffers([data])
    del data
    gc.collect()
    assert gone() is not None
    assert drain(vector, [9], 9) == b"abc"
    del vector
    gc.collect()
    assert gone() is None


def test_buffers_before_entries() -> None:
    guest = bytearray(b"guest memory")
    address = np.frombuffer(guest, np.uint8).__array_interface__["data"][0]
    after = np.array([[address, len(guest)]], np.uint64)
    vector = IoVector.after_buffers((b"header", b"table"), after)
    assert drain(vector, [4], 100) == b"headertableguest memory"
    after = np.array([[address, len(guest)]], np.uint64)
    assert drain(IoVector.after_buffers((b"",), after), [4], 100) == b"guest memory"


@pytest.mark.parametrize("moved", [-1, 4])
def test_more_than_remains_cannot_have_moved(moved: int) -> None:
    vector = IoVector.of_buffers([b"abc"])
    with pytest.raises(ValueError, match="of 3"):
        vector.advance(moved)
    assert vector.remaining == 3


def test_repr_shows_what_remains() -> None:
    vector = IoVector.of_buffers([b"abc", b"d"])
    vector.advance(3)
    assert repr(vector) == "<IoVector 1 bytes in 1 entries>"
