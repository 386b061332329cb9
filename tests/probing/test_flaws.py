"""Each flaw of a receiver is found, and nothing else; a receiver that does all right has none."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from aiomigrate.probing import Check, Launch, ProbeVm, Result, Verdict, plan, probe
from aiomigrate.transport import Address, parse_address
from tests.support.mini_receiver import FLAWS, MiniReceiver

PATIENCE_S = 1.0
ABANDONS = {
    f"abandon/{stage}" for stage in ("established", "started", "configured", "filled", "restored")
}
RESETS = {
    f"reset/{place}"
    for place in (
        "after-start", "in-config", "after-config", "in-header", "in-table", "in-content",
        "after-memory", "after-state",
    )
}  # fmt: skip
RANGES = {"memory/outside", "memory/across-the-end", "memory/wrapping", "memory/behind-content"}
FOUND = {
    "the first connection is the migration": {"stranger/port-scan", "stranger/silent"},
    "closes on an unknown command": {"first/unknown", "order/unknown"},
    "takes any version": {"start/wrong-version"},
    "accepts extensions that nobody offered": {"start/plain", "start/unknown-offer"},
    "accepts extensions that do not exist": {"start/unknown-offer"},
    "reads the payload of Start as a request": {"start/payload"},
    "waits for the payload of Start": {"start/payload", "start/huge-payload"},
    "refuses State": {"legal/to-state"},
    "takes Config twice": {"order/config-again"},
    "takes State without memory": {"order/state-before-memory"},
    "refuses Abandon": ABANDONS,
    "waits for what Config announces": {"config/tib", "config/longest"},
    "takes any JSON": {"config/bad-json"},
    "breaks on a broken table": {"memory/broken-table"},
    "does not check ranges": RANGES | {"memory/pipelined"},
    "refuses overlapping ranges": {"memory/overlapping"},
    "answers the first of requests sent at once": {"memory/pipelined"},
    "announces content": {"legal/to-state"},
    "resets over unread content": {"memory/behind-content"},
    "keeps a connection cut in content": {"close/in-content"},
    "hangs after a reset": RESETS,
    "waits for a sender that stops": {"stall/in-header", "stall/in-table", "stall/in-content"},
    "takes no lanes": {"lane/dialects"},
    "fails with a stranger": {"lane/unknown-role"},
    "fails when a lane ends": {"lane/cut-between"},
    "forgets a broken lane": {"lane/cut-in-content"},
    "forgets a busy lane": {"lane/busy-at-state"},
    "drops a fault connection": {"lane/fault"},
    "takes any number of lanes": {"lane/129th"},
}
SILENT = {
    "hangs after a reset",
    "waits for a sender that stops",
    "waits for the payload of Start",
    "waits for what Config announces",
}
"""Flaws that are found by waiting: there the probe is less patient, so that the test is quick."""
HINDERED = {"refuses State", "announces content", "takes no lanes"}
"""Flaws that leave some checks open, since what comes before them fails."""


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver is on our own loop: it has noticed what it can after a few turns."""
    for module in ("ends", "lanes"):
        monkeypatch.setattr(f"aiomigrate.probing.{module}.SETTLE_S", 0.02)


@pytest.fixture
async def receivers() -> AsyncIterator[list[MiniReceiver]]:
    """Receivers to stop."""
    made: list[MiniReceiver] = []
    yield made
    for receiver in made:
        await receiver.stop()


def where(receiver: MiniReceiver) -> Address:
    return parse_address(f"tcp:127.0.0.1:{receiver.port}")


async def run(
    receiver: MiniReceiver, checks: list[Check], patience_s: float = PATIENCE_S
) -> list[Result]:
    launch: Launch = receiver
    vm = ProbeVm.built_in()
    running = probe(where(receiver), checks, vm, launch, patience_s)
    return [result async for result in running]


def names(results: list[Result], *verdicts: Verdict) -> set[str]:
    return {result.check.name for result in results if result.seen.verdict in verdicts}


async def test_a_good_receiver_has_no_flaw(receivers: list[MiniReceiver]) -> None:
    receiver = MiniReceiver()
    receivers.append(receiver)
    checks = plan(where(receiver))
    results = await run(receiver, checks)
    assert [result.check for result in results] == checks
    texts = {r.check.name: r.seen.text for r in results if r.seen.verdict is not Verdict.OK}
    assert texts == {"start/offer": "a plain receiver"}
    # A fresh receiver for each check, and one more where both dialects are asked for.
    assert receiver.starts == len(checks) + 1


@pytest.mark.parametrize("flaw", sorted(FLAWS))
async def test_a_flaw_is_found_and_nothing_else(flaw: str, receivers: list[MiniReceiver]) -> None:
    stalls = flaw == "waits for a sender that stops"
    receiver = MiniReceiver(flaw)
    receivers.append(receiver)
    checks = [check for check in plan(where(receiver)) if check.name.startswith("stall/") is stalls]
    results = await run(receiver, checks, 0.3 if flaw in SILENT else PATIENCE_S)
    assert names(results, Verdict.FINDING) == FOUND[flaw]
    assert bool(names(results, Verdict.NOT_RUN)) is (flaw in HINDERED)


async def test_what_comes_before_a_check_is_named_when_it_fails(
    receivers: list[MiniReceiver],
) -> None:
    receiver = MiniReceiver("refuses State")
    receivers.append(receiver)
    (result,) = await run(receiver, plan(where(receiver), ["order/state-again"]))
    assert result.seen.verdict is Verdict.NOT_RUN
    assert result.seen.text.startswith("State before it: Error")


def commands(stream: bytes, *, honest: bool) -> set[int]:
    """What a receiver may take for commands: with payloads and content where they are announced,
    or 16 bytes by 16, as one does that leaves payloads in the stream.
    """
    found = set()
    at = 2 if stream[:2] in (b"\x01\0", b"\x02\0", b"\x07\x07") and stream[2:4] != b"\0\0" else 0
    while at + 16 <= len(stream):
        command, length = struct.unpack_from("<H6xQ", stream, at)
        found.add(command)
        at += 16
        if honest:
            table = stream[at : at + length] if command == 4 else b""
            at += length + sum(
                size for _, size in struct.iter_unpack("<QQ", table[: len(table) & ~15])
            )
    return found


@pytest.mark.parametrize("flaw", ["", "takes State without memory", "does not check ranges"])
async def test_it_never_sends_complete(flaw: str, receivers: list[MiniReceiver]) -> None:
    receiver = MiniReceiver(flaw)
    receivers.append(receiver)
    await run(receiver, plan(where(receiver)), 0.5)
    seen = set()
    for stream in receiver.streams:
        for offset in (0, 2):
            for honest in (True, False):
                seen |= commands(bytes(stream[offset:]), honest=honest)
    assert {1, 2, 3, 4, 6, 7, 9} <= seen, "it was looked at"
    assert not seen & {5, 8}


async def test_two_receivers_do_not_mix(receivers: list[MiniReceiver]) -> None:
    receivers += [MiniReceiver(), MiniReceiver("takes any version")]
    wrong = ["start/wrong-version"]
    good, bad = await asyncio.gather(
        *(run(receiver, plan(where(receiver), wrong)) for receiver in receivers)
    )
    assert [result.seen.verdict for result in good + bad] == [Verdict.OK, Verdict.FINDING]
