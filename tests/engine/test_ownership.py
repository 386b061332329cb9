"""Who has the VM, at the source: whatever breaks, it is resumed where it is certainly ours, and
only there.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import aiomigrate
from aiomigrate import MigrationFailed, OutcomeUnknown, Owner, Report
from aiomigrate.protocol import LocalProtocolError, SourceMain
from tests.engine.engine_hooks import BRIEF, HASTY, cancelled_from_within, fails
from tests.engine.engine_hostile import LOCAL
from tests.support.hostile import OK, SMALL, Server
from tests.support.peer import STATE
from tests.support.vms import Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")


# Hooks


@pytest.mark.parametrize("hook", ["config", "start", "pause", "capture", "hand_over"])
async def test_a_hook_that_is_cancelled_from_within_has_failed(hook: str) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script[hook] = cancelled_from_within
        sent, received = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
        assert guest.running
        assert ("resume" in guest.calls) == ("pause" in guest.calls)
        assert not guest.dirty.on
    assert type(sent) is MigrationFailed
    assert f"{hook} was cancelled from within" in sent.what
    assert isinstance(sent.__cause__, asyncio.CancelledError)
    assert isinstance(received, MigrationFailed)
    assert "abandoned" in received.what


async def test_an_error_of_a_hook_stays_the_cause() -> None:
    broken = ValueError("no disk")
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script["capture"] = fails(broken)
        landing.script["discard"] = fails(broken)
        sent, _ = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
    assert isinstance(sent, MigrationFailed)
    assert sent.__cause__ is broken


@pytest.mark.parametrize("how", [fails(RuntimeError("it broke")), cancelled_from_within])
@pytest.mark.parametrize("hooks", [("take_back",), ("resume",), ("take_back", "resume", "stop")])
async def test_what_could_not_be_undone_is_named(
    hooks: tuple[str, ...], how: Callable[[], object]
) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["restore"] = fails(RuntimeError("no room"))
        for hook in hooks:
            guest.script[hook] = how
        sent, _ = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        assert guest.running is ("resume" not in hooks)
    assert type(sent) is MigrationFailed
    assert "the destination refused State" in sent.what
    for hook in hooks:
        name = "dirty.stop" if hook == "stop" else hook
        assert f"source: {name} failed" in str(sent) or f"{name} was cancelled" in str(sent)


# The commit point


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        LocalProtocolError(connection="main", state="s", command=None, expected="x", got="a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_no_error_behind_complete_resumes_the_guest(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise error

    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["resume"] = lambda: monkeypatch.setattr(SourceMain, "receive_data", breaks)
        sent, received = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not guest.running
        assert landing.runs is True
    assert isinstance(sent, OutcomeUnknown)
    assert "a bug" in sent.what
    assert isinstance(received, Report)


async def test_a_failing_close_behind_complete_does_not_resume_the_guest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        async with aiomigrate.receive(landing, LOCAL, BRIEF) as reception:
            async with aiomigrate.send(guest, str(reception.address), HASTY) as sending:

                def close() -> None:
                    monkeypatch.undo()
                    raise OSError("a bug")

                def break_it() -> None:
                    main: Any = sending._attempt._main  # type: ignore[attr-defined]
                    monkeypatch.setattr(main.connection, "close", close)

                landing.script["resume"] = break_it
                with pytest.raises(OutcomeUnknown, match="a bug"):
                    await sending.result()
            await reception.result()
        assert "resume" not in guest.calls
        assert not guest.running


@pytest.mark.parametrize("reset", [False, True])
async def test_complete_is_not_sent_to_a_destination_that_is_gone(
    reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket would take it all the same, and nobody could tell whether it was read."""
    original = SourceMain.complete

    with Guest(SMALL) as guest, Server() as server:
        async with asyncio.TaskGroup() as group:
            accepting = group.create_task(server.up_to(STATE))
            with pytest.raises(MigrationFailed) as caught:  # noqa: PT012 - leaving raises
                async with aiomigrate.send(guest, server.address):
                    raw = await accepting

                    def complete(core: SourceMain, *, paused: bool) -> bytes:
                        raw.close(reset=reset)  # the kernel has it before this returns
                        return original(core, paused=paused)

                    monkeypatch.setattr(SourceMain, "complete", complete)
                    await raw.send(OK)
        assert caught.value.owner is Owner.SOURCE
        assert "the destination hung up before Complete was sent" in caught.value.what
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        assert guest.running
