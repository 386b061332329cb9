"""The hooks of a VMM, at the source and at the destination: their order, and what is undone when
one fails.
"""

import asyncio
import logging

import pytest

from aiomigrate import (
    Deadlines,
    GuestNotStarted,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    ReceiveOptions,
    Report,
    SendOptions,
)
from tests.engine.engine_hooks import fails
from tests.engine.engine_running import assert_moved
from tests.support.clock import VirtualClockLoop
from tests.support.vms import Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])


# The order of the hooks


async def test_hooks_of_a_migration_in_order() -> None:
    with Guest() as guest, Landing() as landing:
        assert_moved(guest, landing, *await migrate(guest, landing))
        assert guest.calls == [
            "config",
            "start",
            "collect 1",
            "pause",
            "collect 2",
            "capture",
            "hand_over",
            "collect 3",
            "stop",
            "release",
        ]
        assert landing.calls == ["configure", "restore", "resume", "confirmed"]
        assert guest.destination.startswith("tcp:127.0.0.1:")
        assert landing.source.startswith("tcp:127.0.0.1:")
        assert guest.ended
        assert not guest.running


async def test_a_paused_guest_stays_paused() -> None:
    with Guest(resumes=False) as guest, Landing() as landing:
        report = assert_moved(guest, landing, *await migrate(guest, landing))
        assert landing.calls == ["configure", "restore", "keep_paused", "confirmed"]
    assert not report.running


_UNDONE = {
    "config": [],
    "start": ["stop"],
    "collect 1": ["stop"],
    "pause": ["resume", "stop"],
    "collect 2": ["resume", "stop"],
    "capture": ["resume", "stop"],
    "hand_over": ["take_back", "resume", "stop"],
    "collect 3": ["take_back", "resume", "stop"],
}


def _assert_undone(guest: Guest, landing: Landing, hook: str) -> None:
    after = guest.calls[guest.calls.index(hook) + 1 :]
    assert after == _UNDONE[hook]
    assert guest.running
    assert not guest.dirty.on
    assert landing.calls == (["configure", "discard"] if hook != "config" else [])


@pytest.mark.parametrize("hook", _UNDONE)
async def test_a_hook_that_fails_leaves_the_guest_running(hook: str) -> None:
    with Guest() as guest, Landing() as landing:
        guest.script[hook] = fails(RuntimeError("it broke"))
        sent, received = await migrate(guest, landing)
        _assert_undone(guest, landing, hook)
    assert isinstance(sent, MigrationFailed)
    assert "it broke" in sent.what
    assert hook.partition(" ")[0] in sent.what
    assert isinstance(sent.__cause__, MigrationFailed | RuntimeError)
    assert isinstance(received, MigrationFailed)
    assert received.owner is sent.owner is Owner.SOURCE
    assert "abandoned" in received.what


@virtual
@pytest.mark.parametrize("hook", _UNDONE)
async def test_a_hook_that_hangs_is_given_up(clock: VirtualClockLoop, hook: str) -> None:
    began = clock.time()
    with Guest() as guest, Landing() as landing:
        guest.script[hook] = asyncio.Event().wait
        options = SendOptions(deadlines=Deadlines(embedder_s=40))
        sent, _ = await migrate(guest, landing, sending=options)
        _assert_undone(guest, landing, hook)
    assert isinstance(sent, MigrationFailed)
    assert "did not return in 40 s" in sent.what
    assert hook.partition(" ")[0] in sent.what
    assert clock.time() - began == pytest.approx(40, abs=5)


@pytest.mark.parametrize("hook", ["take_back", "resume", "stop"])
async def test_a_hook_of_the_undoing_that_fails_does_not_stop_the_others(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Guest() as guest, Landing() as landing:
        guest.script["hand_over"] = fails(RuntimeError("it broke"))
        guest.script[hook] = fails(RuntimeError("this too"))
        sent, _ = await migrate(guest, landing)
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
    assert isinstance(sent, MigrationFailed)
    assert "it broke" in sent.what
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["this too" in record.getMessage() for record in warnings] == [True]


@pytest.mark.parametrize("hook", ["stop", "release"])
async def test_a_hook_that_fails_after_the_end_is_a_warning(hook: str) -> None:
    with Guest() as guest, Landing() as landing:
        guest.script[hook] = fails(RuntimeError("too late"))
        report = assert_moved(guest, landing, *await migrate(guest, landing))
        assert guest.calls[-2:] == ["stop", "release"]
    (warning,) = report.warnings
    assert "too late" in warning


async def test_confirmed_that_fails_is_a_warning() -> None:
    with Guest() as guest, Landing() as landing:
        landing.script["confirmed"] = fails(RuntimeError("too late"))
        _, received = await migrate(guest, landing)
        assert "discard" not in landing.calls
    assert isinstance(received, Report)
    assert received.confirmed
    (warning,) = received.warnings
    assert "too late" in warning


# The destination's hooks


@pytest.mark.parametrize(
    ("hook", "where"), [("configure", "Config"), ("restore", "State")], ids=["configure", "restore"]
)
@pytest.mark.parametrize("error", [RuntimeError("no room"), GuestNotStarted("no room")])
async def test_a_destination_that_cannot_build_it(hook: str, where: str, error: Exception) -> None:
    with Guest() as guest, Landing() as landing:
        landing.script[hook] = fails(error)
        sent, received = await migrate(guest, landing)
        assert landing.calls[-1] == "discard"
        assert guest.running
        assert not guest.ended
    assert isinstance(sent, MigrationFailed)
    assert f"the destination refused {where}" in sent.what
    assert isinstance(received, MigrationFailed)
    assert "no room" in received.what
    assert (sent.owner, received.owner) == (Owner.SOURCE, Owner.SOURCE)


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_guest_that_was_not_started_goes_back(resumes: bool) -> None:
    with Guest(resumes=resumes) as guest, Landing() as landing:
        landing.script["resume" if resumes else "keep_paused"] = fails(
            GuestNotStarted("KVM says no")
        )
        order: list[str] = []
        landing.script["discard"] = lambda: order.append("discard")
        guest.script["take_back"] = lambda: order.append("take_back")
        sent, received = await migrate(guest, landing)
        assert order == ["discard", "take_back"], "the Error comes after the discarding"
        assert landing.calls.count("discard") == 1
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
    assert isinstance(sent, MigrationFailed)
    assert "the destination refused Complete" in sent.what
    assert isinstance(received, MigrationFailed)
    assert "KVM says no" in received.what
    assert (sent.owner, received.owner) == (Owner.SOURCE, Owner.SOURCE)


async def test_any_error_of_a_paused_takeover_goes_back() -> None:
    """No guest instruction runs in `keep_paused`."""
    with Guest(resumes=False) as guest, Landing() as landing:
        landing.script["keep_paused"] = fails(RuntimeError("the disk is gone"))
        sent, received = await migrate(guest, landing)
        assert landing.calls[-1] == "discard"
    assert isinstance(sent, MigrationFailed)
    assert isinstance(received, MigrationFailed)


@virtual
async def test_a_resume_that_breaks_leaves_the_outcome_unknown(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        landing.script["resume"] = fails(RuntimeError("after some instructions"))
        sent, received = await migrate(guest, landing)
        assert "discard" not in landing.calls
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not {"take_back", "resume", "release"} & {*guest.calls}
        assert not guest.running
        assert guest.reasons == [sent]
    assert isinstance(received, OutcomeUnknown)
    assert "after some instructions" in received.what
    assert isinstance(sent, OutcomeUnknown)
    assert "the answer to Complete was lost" in sent.what
    assert (sent.owner, received.owner) == (Owner.UNKNOWN, Owner.UNKNOWN)


@virtual
async def test_a_resume_that_hangs_leaves_the_outcome_unknown(clock: VirtualClockLoop) -> None:
    with Guest() as guest, Landing() as landing:
        landing.script["resume"] = asyncio.Event().wait
        options = ReceiveOptions(deadlines=Deadlines(embedder_s=20))
        sent, received = await migrate(guest, landing, receiving=options)
        assert not guest.running
    assert isinstance(sent, OutcomeUnknown)
    assert isinstance(received, OutcomeUnknown)
    assert "resume did not return in 20 s" in received.what
