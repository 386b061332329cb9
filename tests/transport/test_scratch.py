import errno
import mmap
import os
import tempfile

import pytest

from aiomigrate.transport.scratch import PIECE_BYTES, Scratch
from tests.transport.vectors import PlainVector


def test_a_scratch_gathers_and_scatters_what_vectors_name() -> None:
    data = os.urandom(3000)
    source = PlainVector(
        [bytearray(data[:1000]), bytearray(data[1000:1001]), bytearray(data[1001:])]
    )
    target = PlainVector([bytearray(7), bytearray(2000), bytearray(993)])
    scratch = Scratch()
    with scratch.gather(source, PIECE_BYTES) as view:
        assert bytes(view) == data
    scratch.scatter(target, 2500)
    assert target.remaining == 500
    assert b"".join(target.pieces) == data[:2500] + bytes(500)
    scratch.close()


def test_an_entry_longer_than_the_buffer_is_taken_in_part() -> None:
    data = bytearray(os.urandom(2 * PIECE_BYTES))
    source = PlainVector([data])
    scratch = Scratch()
    with scratch.gather(source, len(data)) as view:
        assert view == data[:PIECE_BYTES]
    scratch.close()


def test_memory_that_is_not_there_is_an_error() -> None:
    scratch = Scratch()
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        for use in (scratch.gather, scratch.scatter):
            with pytest.raises(OSError, match="Bad address") as caught:
                use(PlainVector([mapped]), 10)
            assert caught.value.errno == errno.EFAULT
    scratch.close()
