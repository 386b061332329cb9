"""aiomigrate's own receiver, started anew for each check, is found to be good."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from aiomigrate import (
    Deadlines,
    MigrationError,
    Pace,
    ReceiveOptions,
    StoredDestination,
    receive,
)
from aiomigrate.probing import CannotProbe, ProbeVm, Result, Verdict, plan, probe
from aiomigrate.transport import Identity, parse_address, source_context
from tests.support.certificates import Authority
from tests.support.sockets import free_port

PATIENCE_S = 10.0
# Less than what the probe gives a receiver to notice that a sender has stopped.
PROMPT = ReceiveOptions(deadlines=Deadlines(header_s=0.5, pace=Pace(seconds=0.5)))


class Own:
    """`receive` into a directory, on the running loop."""

    fresh = True

    def __init__(self, address: str, into: Path, tls_dir: Path | None = None) -> None:
        self._address = address
        self._into = into
        self._options = replace(PROMPT, tls_dir=tls_dir)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.stop()
        listening = asyncio.Event()
        self._task = asyncio.create_task(self._receive(listening))
        await listening.wait()

    async def _receive(self, listening: asyncio.Event) -> None:
        async with (
            StoredDestination(self._into) as destination,
            receive(destination, self._address, self._options) as migration,
        ):
            listening.set()
            with suppress(MigrationError):
                await migration.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def failure(self) -> str:
        return ""

    def processes(self) -> list[int]:
        return []


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_nothing_is_wrong_with_it(kind: str, tmp_path: Path, no_leaks: None) -> None:
    address = f"tcp:127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{tmp_path}/s"
    results = await _results(Own(address, tmp_path / "vm"), address)
    assert _odd(results) == {}
    assert not (tmp_path / "vm").exists()


async def test_nothing_is_wrong_with_it_through_tls(tmp_path: Path, no_leaks: None) -> None:
    tls_dir = Authority().directory(tmp_path / "tls")
    address = f"tcp:127.0.0.1:{free_port()}"
    own = Own(address, tmp_path / "vm", tls_dir)
    some = ("stranger/port-scan", "start/", "legal/", "memory/pipelined", "lane/")
    results = await _results(own, address, tls_dir, some)
    assert {result.check.name.partition("/")[0] for result in results} >= {"stranger", "lane"}
    assert _odd(results) == {}


WRONG = {
    "unknown": "the peer does not know the authority of this side's certificate",
    "expired": "the peer says that this side's certificate has expired",
    "foreign": "the peer's certificate is not accepted: self-signed certificate in certificate",
    "another host": "the peer's certificate is not accepted: IP address mismatch",
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_certificate_is_named_and_nothing_is_judged(
    wrong: str, tmp_path: Path, no_leaks: None
) -> None:
    """In TLS 1.3 the probe has a connection before the receiver has looked at its certificate."""
    authority = Authority()
    bad, good = tmp_path / "bad", tmp_path / "good"
    if wrong == "another host":
        authority.directory(good)
        bad, good = good, authority.directory(bad, host="192.0.2.7")
    else:
        authority.directory(good)
        issuer = Authority() if wrong == "unknown" else None
        whose = Authority() if wrong == "foreign" else authority
        whose.directory(bad, issuer=issuer, expired=wrong == "expired")
    address = f"tcp:127.0.0.1:{free_port()}"
    own = Own(address, tmp_path / "vm", good)
    with pytest.raises(CannotProbe, match=WRONG[wrong]):
        await _results(own, address, bad)


async def _results(
    own: Own,
    address: str,
    tls_dir: Path | None = None,
    prefixes: Sequence[str] = (),
) -> list[Result]:
    where = parse_address(address)
    identity = None
    if tls_dir is not None:
        identity = Identity(await asyncio.to_thread(source_context, tls_dir), "127.0.0.1")
    checks = plan(where, prefixes)
    try:
        running = probe(where, checks, ProbeVm.built_in(), own, PATIENCE_S, identity)
        return [result async for result in running]
    finally:
        await own.stop()
        if identity is not None:
            identity.close()


def _odd(results: Sequence[Result]) -> dict[str, str]:
    return {
        result.check.name: result.seen.text
        for result in results
        if result.seen.verdict not in (Verdict.OK, Verdict.NOTE)
    }
