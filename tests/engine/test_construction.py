"""The VM while a destination builds it: it is discarded or it is ours, whatever breaks."""

import asyncio
from dataclasses import replace

import pytest

import aiomigrate
from aiomigrate import GuestNotStarted, MigrationFailed, OutcomeUnknown, Owner, Report
from aiomigrate.protocol import ALL_EXTENSIONS, DestinationMain, Extension
from aiomigrate.takeover import Takeover
from tests.engine.engine_hooks import BRIEF, HASTY, cancelled_from_within, fails
from tests.engine.engine_hostile import GOOD, failure_of, reach, receiving
from tests.support.hostile import ERROR, SMALL, Raw, request
from tests.support.peer import COMPLETE, COMPLETE_PAUSED
from tests.support.vms import Guest, Landing, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")


# A hook that is cancelled from within


@pytest.mark.parametrize(
    ("hook", "refused"),
    [("configure", "Config"), ("restore", "State"), ("keep_paused", "Complete")],
)
async def test_a_hook_that_is_cancelled_from_within_has_failed(hook: str, refused: str) -> None:
    with Guest(SMALL, resumes=hook != "keep_paused") as guest, Landing() as landing:
        landing.script[hook] = cancelled_from_within
        sent, received = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
        assert landing.calls[-2:] == [hook, "discard"]
        assert landing.runs is None
        assert guest.running
    assert type(sent) is MigrationFailed
    assert f"the destination refused {refused}" in sent.what
    assert type(received) is MigrationFailed
    assert f"destination: {hook} was cancelled from within" in received.what
    assert received.owner is Owner.SOURCE
    assert isinstance(received.__cause__, asyncio.CancelledError)


async def test_a_resume_that_is_cancelled_from_within_leaves_the_outcome_unknown() -> None:
    with Landing() as landing:
        landing.script["resume"] = cancelled_from_within
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await reach(raw, "State")
                await raw.send(request(COMPLETE))
                assert await raw.rest() == (b"", "eof")
            with pytest.raises(OutcomeUnknown, match="resume was cancelled from within"):
                await reception.result()
        assert landing.calls == ["configure", "restore", "resume"]


# Errors where nobody expects one


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("where", ["the answer", "the wait for the source"])
async def test_an_error_once_the_vm_is_here_does_not_take_it_away(
    where: str, paused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    def break_it() -> None:
        if where == "the answer":
            monkeypatch.setattr(DestinationMain, "answer", breaks)
        else:
            monkeypatch.setattr(Takeover, "confirmed", breaks)

    with Guest(SMALL, resumes=not paused) as guest, Landing() as landing:
        landing.script["keep_paused" if paused else "resume"] = break_it
        sent, received = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
        assert landing.runs is not paused
        assert "discard" not in landing.calls
        assert not guest.running
    assert isinstance(received, Report)
    assert (received.owner, received.running) == (Owner.DESTINATION, not paused)
    assert not received.confirmed
    assert any("a bug" in warning for warning in received.warnings)
    assert isinstance(sent, OutcomeUnknown if where == "the answer" else Report)


async def test_an_error_before_the_vm_is_here_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Complete has been read, and nothing was begun: it is certain that no instruction ran."""

    async def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Takeover, "own", breaks)
    with Guest(SMALL) as guest, Landing() as landing:
        sent, received = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
        assert landing.calls == ["configure", "restore", "discard"]
        assert guest.running
    assert isinstance(sent, MigrationFailed)
    assert "the destination refused Complete" in sent.what
    assert isinstance(received, MigrationFailed)
    assert "a bug" in received.what


# Discarding


@pytest.mark.parametrize("paused", [False, True])
async def test_a_vm_that_cannot_be_discarded_at_complete_has_no_certain_owner(
    paused: bool,
) -> None:
    with Guest(SMALL, resumes=not paused) as guest, Landing() as landing:
        landing.script["keep_paused" if paused else "resume"] = fails(GuestNotStarted("no KVM"))
        landing.script["discard"] = fails(RuntimeError("it sticks"))
        sent, received = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
        assert landing.calls.count("discard") == 1
        assert guest.calls[-2:] == ["lost", "stop"]
        assert not guest.running
    assert isinstance(received, OutcomeUnknown)
    assert "no KVM" in received.what
    assert "it could not be discarded" in received.what
    assert "discard failed: RuntimeError('it sticks')" in str(received)
    assert isinstance(sent, OutcomeUnknown)


async def test_no_error_is_answered_for_a_vm_that_could_not_be_discarded() -> None:
    with Landing() as landing:
        landing.script["keep_paused"] = fails(RuntimeError("no lock"))
        landing.script["discard"] = fails(RuntimeError("it sticks"))
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await reach(raw, "State")
                await raw.send(request(COMPLETE_PAUSED))
                assert await raw.rest() == (b"", "eof")
            with pytest.raises(OutcomeUnknown):
                await reception.result()


@pytest.mark.parametrize("hook", ["configure", "restore"])
@pytest.mark.parametrize("flies", [False, True])
async def test_what_cannot_be_discarded_earlier_is_named(hook: str, flies: bool) -> None:
    """The source never asked for it to run: it keeps the VM. Unless Complete was on its way: there
    is no Error as long as something is left, and so nothing to tell the source.
    """
    sending = replace(HASTY, extensions=ALL_EXTENSIONS if flies else Extension.NONE)
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script[hook] = fails(RuntimeError("no room"))
        landing.script["discard"] = fails(RuntimeError("it sticks"))
        sent, received = await migrate(guest, landing, receiving=BRIEF, sending=sending)
        in_doubt = flies and hook == "restore"
        assert guest.running is not in_doubt
    assert isinstance(sent, OutcomeUnknown if in_doubt else MigrationFailed)
    assert isinstance(received, MigrationFailed)
    assert received.owner is Owner.SOURCE
    assert "no room" in received.what
    assert "discard failed: RuntimeError('it sticks')" in str(received)


@pytest.mark.parametrize(("hook", "before"), [("configure", "Start"), ("restore", "Memory")])
async def test_an_error_is_answered_only_once_everything_is_gone(hook: str, before: str) -> None:
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                answered: list[bool] = []

                async def discard() -> None:
                    for _ in range(20):  # whatever runs beside it has its turn
                        await asyncio.sleep(0)
                        answered.append(raw.unread())

                landing.script[hook] = fails(RuntimeError("no room"))
                landing.script["discard"] = discard
                await reach(raw, before)
                names = list(GOOD)
                await raw.send(GOOD[names[names.index(before) + 1]])
                assert await raw.rest() == (ERROR, "eof")
                assert answered == [False] * 20
            assert "no room" in (await failure_of(reception)).what


# The source's end of stream


@pytest.mark.parametrize("command", [COMPLETE, COMPLETE_PAUSED])
@pytest.mark.parametrize("how", ["end", "close", "reset"])
async def test_a_source_that_hangs_up_behind_complete_keeps_the_vm(how: str, command: int) -> None:
    """It may not know that it sent it."""
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                await reach(raw, "State")
                await raw.send(request(command))
                if how == "end":  # without a turn of the event loop in between
                    raw.end()
                    assert await raw.rest() == (ERROR, "eof")
                else:
                    raw.close(reset=how == "reset")
            error = await failure_of(reception)
        assert landing.calls == ["configure", "restore", "discard"]
    if how != "reset":  # which may overtake Complete
        assert "the source hung up before the VM was taken over" in error.what


async def test_a_source_that_hangs_up_in_time_does_not_take_the_vm_back() -> None:
    """Once it runs here it stays, and that nobody confirmed it is said."""
    with Landing() as landing:
        async with receiving(landing) as reception:
            with await Raw.connect(reception.address) as raw:
                landing.script["resume"] = lambda: raw.close(reset=True)
                await reach(raw, "State")
                await raw.send(request(COMPLETE))
                report = await reception.result()
        assert landing.runs is True
        assert "discard" not in landing.calls
    assert isinstance(report, aiomigrate.Report)
    assert not report.confirmed
