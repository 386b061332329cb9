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


_MOVER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, use_errno=True
)


class Mover:
    """A C function that takes what it is given, a piece of the length that is its turn each time;
    at a length of 0 it fails with `errno`.
    """

    def __init__(self, turns: list[int], errno: int = 0) -> None:
        self.taken = b""
        self.lengths: list[int] = []
        self._turns = turns
        self._errno = errno
        self._function = _MOVER(self._move)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value or 0

    def _move(self, handle: int, address: int, length: int) -> int:
        assert handle == 7
        self.lengths.append(length)
        turn = self._turns[0]
        self._turns.append(self._turns.pop(0))
        ctypes.set_errno(0 if turn else self._errno)
        moved = min(turn, length)
        self.taken += ctypes.string_at(address, moved)
        return moved or -1


@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
    st.integers(1, 90),
    st.integers(1, 30),
)
def test_a_function_moves_all_of_it_in_turn(
    buffers: list[bytes], turns: list[int], most: int, piece: int
) -> None:
    vector, mover = IoVector.of_buffers(buffers), Mover(turns)
    total = vector.remaining
    while before := vector.remaining:
        moved, code = vector.through(mover.address, 7, most, piece)
        assert code == 0
        assert min(most, before) <= moved < most + piece
        assert vector.remaining == before - moved
    assert mover.taken == b"".join(buffers)
    assert len(mover.taken) == total
    assert all(length <= piece for length in mover.lengths)
    assert vector.through(mover.address, 7, most, piece) == (0, 0)


@pytest.mark.parametrize(("errno", "code"), [(11, 11), (0, -1)])
def test_a_function_that_fails_keeps_what_it_has_moved(errno: int, code: int) -> None:
    vector, mover = IoVector.of_buffers([b"abc", b"defgh"]), Mover([3, 2, 0], errno)
    assert vector.through(mover.address, 7, 100, 100) == (5, code)
    assert vector.through(mover.address, 7, 100, 100) == (3, 0)
    assert mover.taken == b"abcdefgh"
    assert vector.remaining == 0


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
    vector = IoVector.after_buffers((b"header", b"table"), after, steady=True)
    assert drain(vector, [4], 100) == b"headertableguest memory"
    after = np.array([[address, len(guest)]], np.uint64)
    assert drain(IoVector.after_buffers((b"",), after, steady=True), [4], 100) == b"guest memory"


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
