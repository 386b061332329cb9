"""A destination that lies to `send`."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

import aiomigrate
from aiomigrate import (
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    ReceiveOptions,
    SendOptions,
)
from aiomigrate.protocol import Limits
from tests.support.hostile import (
    ERROR,
    OK,
    ROLE_MEMORY,
    SMALL,
    Raw,
    Server,
    response,
)
from tests.support.image import PAGE
from tests.support.peer import (
    ABANDON,
    COMPLETE,
    CONFIG,
    MEMORY,
    START,
    STATE,
)
from tests.support.vms import Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")

_MOST = 2**64 - 1


_Act = Callable[[Raw], Awaitable[None]]


def _answers(data: bytes, *, then: str = "wait") -> _Act:
    async def act(raw: Raw) -> None:
        await raw.send_in_vain(data)
        if then == "end":
            raw.end()
        if then == "reset":
            raw.close(reset=True)
        else:
            await raw.rest()

    return act


@dataclass(frozen=True)
class _Lie:
    """What a destination does instead of answering, and what the source's error has to say."""

    act: _Act
    says: str


_LIES = {
    "status 0": _Lie(_answers(response(0)), "expected status Ok or Error, got status 0"),
    "status 3": _Lie(_answers(response(3)), "expected status Ok or Error, got status 3"),
    "status 65535": _Lie(_answers(response(65535)), "got status 65535"),
    "Ok with content": _Lie(_answers(response(1, 5) + b"12345"), "got 5 bytes of it"),
    "Ok with huge content": _Lie(_answers(response(1, _MOST)), f"got {_MOST} bytes of it"),
    "Error": _Lie(_answers(ERROR), "refused"),
    "Error and the end": _Lie(_answers(ERROR, then="end"), "refused"),
    "half an answer and the end": _Lie(_answers(OK[:7], then="end"), "got end of stream"),
    "the end": _Lie(_answers(b"", then="end"), "got end of stream"),
    "a reset": _Lie(_answers(b"", then="reset"), "lost"),
    "garbage": _Lie(_answers(b"HTTP/1.1 400 Bad Request"), "expected status Ok or Error"),
}
_REQUESTS = {"Start": START, "Config": CONFIG, "Memory": MEMORY, "State": STATE}


async def _serve(raw: Raw, server: Server, at: int, act: _Act) -> None:
    """Answer with Ok up to the request `at`."""
    while True:
        command, _ = await server.take_memory(raw)
        if command in (at, -1, ABANDON):
            break
        await raw.send(OK)
    if command == at:
        await act(raw)


async def _lie(guest: Guest, at: int, act: _Act) -> aiomigrate.Report | BaseException:
    with Server() as server:
        async with asyncio.TaskGroup() as group, aiomigrate.send(guest, server.address) as sending:
            with await server.accept() as raw:
                await _serve(raw, server, at, act)
            del group
            try:
                return await sending.result()
            except aiomigrate.MigrationError as error:
                return error


@pytest.mark.parametrize("lie", _LIES)
@pytest.mark.parametrize("at", _REQUESTS)
async def test_a_lying_destination_leaves_the_vm_with_the_source(at: str, lie: str) -> None:
    with Guest(SMALL) as guest:
        error = await _lie(guest, _REQUESTS[at], _LIES[lie].act)
        assert isinstance(error, MigrationFailed)
        assert error.owner is Owner.SOURCE
        assert _LIES[lie].says in str(error), error
        assert "main" in str(error) or "tcp:127.0.0.1:" in str(error)
        assert guest.running
        assert "lost" not in guest.calls
        assert "release" not in guest.calls
        assert ("resume" in guest.calls) == ("pause" in guest.calls) == (at == "State")
        assert ("take_back" in guest.calls) == ("hand_over" in guest.calls) == (at == "State")
        assert not guest.dirty.on


@pytest.mark.parametrize("lie", _LIES)
async def test_a_lie_about_complete(lie: str) -> None:
    """Only an Error proves that the destination does not run it."""
    with Guest(SMALL) as guest:
        error = await _lie(guest, COMPLETE, _LIES[lie].act)
        if lie.startswith("Error"):
            assert isinstance(error, MigrationFailed)
            assert guest.running
            assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        else:
            assert isinstance(error, OutcomeUnknown)
            assert "tcp:127.0.0.1:" in str(error)
            assert _LIES[lie].says in str(error)
            assert not guest.running
            assert guest.calls[-2:] == ["lost", "stop"]
            assert "take_back" not in guest.calls


@pytest.mark.parametrize("at", _REQUESTS)
async def test_an_answer_that_nothing_asked_for(at: str) -> None:
    with Guest(SMALL) as guest:
        error = await _lie(guest, _REQUESTS[at], _answers(OK * 3))
        assert isinstance(error, MigrationFailed)
        assert "expected no response, got one of status 1" in str(error)
        assert guest.running


async def test_answers_behind_the_one_to_complete_change_nothing() -> None:
    with Guest(SMALL) as guest:
        report = await _lie(guest, COMPLETE, _answers(OK + ERROR + b"more"))
        assert isinstance(report, aiomigrate.Report)
        assert guest.ended
        assert not guest.running


@pytest.mark.parametrize("lie", [*_LIES, "unasked"])
async def test_a_lying_lane(lie: str) -> None:
    act, says = _answers(OK * 100), "expected no response"
    if lie != "unasked":
        act, says = _LIES[lie].act, _LIES[lie].says

    async def lane(raw: Raw, server: Server) -> None:
        assert await raw.receive(2) == ROLE_MEMORY
        await _serve(raw, server, MEMORY, act)

    async def destination(server: Server) -> None:
        with await server.accept() as main:
            for _ in range(2):
                await server.request(main)
                await main.send(OK)
            with await server.accept() as one, await server.accept() as two:
                # Either lane may get the first chunk, or both one.
                await asyncio.gather(give_up(main), lane(one, server), lane(two, server))

    async def give_up(main: Raw) -> None:
        assert await server.request(main) == (ABANDON, b"")
        await main.send(OK)

    with Guest(SMALL) as guest, Server() as server:
        serving = asyncio.create_task(destination(server))
        options = SendOptions(connections=2, chunk_bytes=4 * PAGE)
        with pytest.raises(MigrationFailed) as caught:
            async with aiomigrate.send(guest, server.address, options):
                pass
        await serving
        told = str(caught.value)
        # The kernel tells of a reset once: if the writer met it, the reader meets the end.
        assert says in told or (lie == "a reset" and "got end of stream" in told)
        assert "lane " in str(caught.value) or "tcp:127.0.0.1:" in str(caught.value)
        assert caught.value.owner is Owner.SOURCE
        assert guest.running


@pytest.mark.parametrize("how", ["reset", "end", "linger"])
@pytest.mark.parametrize("at", ["Config", "State"])
async def test_a_refusal_of_what_is_still_being_written(at: str, how: str) -> None:
    """The header is refused while megabytes are on their way: that is told, and no broken pipe."""

    class Big(Guest):
        async def capture(self) -> bytes:
            return await super().capture() + padding

    async def destination() -> None:
        with await server.accept() as raw:
            while True:
                header = await raw.receive(16)
                command, length = struct.unpack("<H6xQ", header)
                if command == _REQUESTS[at]:
                    break
                payload = await raw.receive(length)
                if command == MEMORY:
                    await raw.receive(sum(size for _, size in struct.iter_unpack("<QQ", payload)))
                await raw.send(OK)
            await raw.send(ERROR)
            if how == "reset":
                raw.close(reset=True)
            elif how == "linger":
                raw.end()
                await raw.rest()

    padding = b" " * (16 << 20)
    with Big(SMALL) as guest, Server(65536) as server:
        if at == "Config":
            guest.config_bytes += padding
        serving = asyncio.create_task(destination())
        with pytest.raises(MigrationFailed, match=f"the destination refused {at}"):
            async with aiomigrate.send(guest, server.address):
                pass
        await serving
        assert guest.running


@pytest.mark.parametrize("at", ["Config", "State"])
async def test_receive_refuses_what_is_still_being_written(at: str) -> None:
    """As above, from our own destination."""

    class Big(Guest):
        async def capture(self) -> bytes:
            return await super().capture() + padding

    padding = b" " * (16 << 20)
    small = {"Config": Limits(max_config_bytes=4096), "State": Limits(max_state_bytes=4096)}
    with Big(SMALL) as guest, Landing() as landing:
        if at == "Config":
            guest.config_bytes += padding
        sent, received = await migrate(guest, landing, receiving=ReceiveOptions(limits=small[at]))
        assert guest.running
    assert isinstance(sent, MigrationFailed)
    assert f"the destination refused {at}" in sent.what
    assert isinstance(received, MigrationFailed)
    assert f"{at}: expected 1 to 4096 bytes" in received.what
