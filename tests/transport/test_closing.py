"""How a connection ends: closed, aborted, ended one way, lingering; seen from both ends."""

import asyncio
import errno

import pytest

from aiomigrate.transport import ConnectionClosed, ConnectionLost
from tests.transport.transport_pairs import MIB, Pair, settle
from tests.transport.vectors import PlainVector

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


async def test_an_abort_resets_the_peer(pair: Pair) -> None:
    near, far = pair
    near.abort()
    if far.name.startswith("unix:"):
        assert await far.read_some(1) == b""
    else:
        with pytest.raises(ConnectionLost) as caught:
            await far.read_some(1)
        assert caught.value.errno == errno.ECONNRESET
        assert isinstance(caught.value.__cause__, OSError)
    near.abort()


async def test_writing_to_a_peer_that_is_gone_is_a_lost_connection(pair: Pair) -> None:
    near, far = pair
    far.abort()
    with pytest.raises(ConnectionLost) as caught:
        await near.write(bytes(MIB))
    assert caught.value.errno in {errno.EPIPE, errno.ECONNRESET}
    with pytest.raises(ConnectionLost):
        near.write_now(b"x")
    with pytest.raises(ConnectionLost):
        await near.write_vector(PlainVector([bytearray(1)]))


async def test_a_closed_connection_says_so(pair: Pair) -> None:
    near, far = pair
    await near.write(b"abc")
    await far.read_exactly(3)
    near.close()
    near.close()
    near.abort()
    await near.close_lingering()
    assert near.closed
    assert "closed" in repr(near)
    assert near.acknowledged() == near.written == 3
    for use in (near.hung_up, near.unread, lambda: near.write_now(b"x")):
        with pytest.raises(ConnectionClosed):
            use()
    for operation in (near.read_some(1), near.write(b"x"), near.wait_hang_up(1.0)):
        with pytest.raises(ConnectionClosed):
            await operation


async def test_a_hang_up_is_seen_behind_unread_bytes(pair: Pair) -> None:
    near, far = pair
    await near.write(b"not read yet")
    assert not far.hung_up()
    watching = asyncio.create_task(far.wait_hang_up(60.0))
    await settle()
    assert not watching.done()
    near.close()
    assert await watching
    assert far.hung_up()
    assert await far.read_exactly(12) == b"not read yet"
    assert await far.wait_hang_up(60.0)


async def test_a_reset_is_a_hang_up(pair: Pair) -> None:
    near, far = pair
    near.abort()
    assert await far.wait_hang_up(60.0)
    assert far.hung_up()


async def test_a_lingering_close_lets_the_peer_read_our_last_words(pair: Pair) -> None:
    near, far = pair

    async def refused() -> bytes:
        await near.write(bytes(8 * MIB))
        answer = await near.read_exactly(5)
        assert await near.read_some(1) == b""
        near.close()
        return answer

    peer = asyncio.create_task(refused())
    await far.read_exactly(16)
    await far.write(b"error")
    await far.close_lingering(60.0)
    assert far.closed
    assert await peer == b"error"


async def test_an_ended_stream_can_still_be_read_from(pair: Pair) -> None:
    near, far = pair
    await near.write(b"question")
    near.end_stream()
    assert await far.read_exactly(8) == b"question"
    assert await far.read_some(1) == b""
    await far.write(b"answer")
    assert await near.read_exactly(6) == b"answer"
    with pytest.raises(ConnectionLost):
        await near.write(b"more")
    near.close()
    with pytest.raises(ConnectionClosed):
        near.end_stream()


async def test_a_lingering_close_after_the_peers(pair: Pair) -> None:
    near, far = pair
    far.close()
    assert await near.wait_hang_up(60.0)
    await near.close_lingering(60.0)  # whether it hears our farewell is up to its kernel
    assert near.closed


async def test_an_end_after_ours_is_an_end(pair: Pair) -> None:
    near, far = pair
    near.end_stream()
    far.end_stream()
    assert await near.read_some(1) == b""
    assert await far.read_some(1) == b""


async def test_a_stream_that_is_ended_twice_loses_nothing(pair: Pair) -> None:
    near, far = pair
    await far.write(b"abc")
    near.end_stream()
    near.end_stream()
    assert await near.read_exactly(3) == b"abc"


async def test_a_lingering_close_survives_a_reset(pair: Pair) -> None:
    near, far = pair
    closing = asyncio.create_task(far.close_lingering(60.0))
    await settle()
    near.abort()
    await closing
    assert far.closed


async def test_a_lingering_close_closes_also_when_cancelled(pair: Pair) -> None:
    near, _ = pair
    task = asyncio.create_task(near.close_lingering(60.0))
    await settle()
    assert not near.closed
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert near.closed
