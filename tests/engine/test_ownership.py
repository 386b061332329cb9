"""Who has the VM, at the source: whatever breaks, it is resumed where it is certainly ours, and
only there.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import aiomigrate
from aiomigrate import (
    Deadlines,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    OutcomeUnknown,
    Owner,
    ReceiveOptions,
    Report,
    SendOptions,
    StoredSource,
    UsageError,
)
from aiomigrate.protocol import LocalProtocolError, SourceMain
from tests.support.clock import VirtualClockLoop
from tests.support.hostile import ERROR, OK, SMALL, Raw, Server
from tests.support.peer import ABANDON, CONFIG, STATE
from tests.support.vms import Guest, Landing, migrate, store_vm

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

_LOCAL = "tcp:127.0.0.1:0"
# Where nobody will ask who owns the VM.
BRIEF = ReceiveOptions(linger_s=0.05)
# Where nobody will answer that.
HASTY = SendOptions(deadlines=Deadlines(settle_s=0.05))


def _fails(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


async def _waits_for_a_cancelled_task() -> None:
    """As a hook meets it whose own machinery was shut down: nobody cancels the migration."""
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


# Hooks


@pytest.mark.parametrize("hook", ["config", "start", "pause", "capture", "hand_over"])
async def test_a_hook_that_is_cancelled_from_within_has_failed(hook: str) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script[hook] = _waits_for_a_cancelled_task
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
        guest.script["capture"] = _fails(broken)
        landing.script["discard"] = _fails(broken)
        sent, _ = await migrate(guest, landing, receiving=BRIEF, sending=HASTY)
    assert isinstance(sent, MigrationFailed)
    assert sent.__cause__ is broken


@pytest.mark.parametrize("how", [_fails(RuntimeError("it broke")), _waits_for_a_cancelled_task])
@pytest.mark.parametrize("hooks", [("take_back",), ("resume",), ("take_back", "resume", "stop")])
async def test_what_could_not_be_undone_is_named(
    hooks: tuple[str, ...], how: Callable[[], object]
) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["restore"] = _fails(RuntimeError("no room"))
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
        async with aiomigrate.receive(landing, _LOCAL, BRIEF) as reception:
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
            accepting = group.create_task(server.accept())
            with pytest.raises(MigrationFailed) as caught:  # noqa: PT012 - leaving raises
                async with aiomigrate.send(guest, server.address):
                    raw = await accepting

                    def complete(core: SourceMain, *, paused: bool) -> bytes:
                        raw.close(reset=reset)  # the kernel has it before this returns
                        return original(core, paused=paused)

                    monkeypatch.setattr(SourceMain, "complete", complete)
                    while (await server.take_memory(raw))[0] != STATE:
                        await raw.send(OK)
                    await raw.send(OK)
        assert caught.value.owner is Owner.SOURCE
        assert "the destination hung up before Complete was sent" in caught.value.what
        assert guest.calls[-3:] == ["take_back", "resume", "stop"]
        assert guest.running


# Giving up while an answer is due


async def _answer_up_to(server: Server, raw: Raw, command: int) -> None:
    while True:
        got, _ = await server.take_memory(raw)
        if got == command:
            return
        assert got != -1
        await raw.send(OK)


def _undone(guest: Guest) -> asyncio.Event:
    """Set once the guest is as it was."""
    undone = asyncio.Event()
    guest.script["stop"] = undone.set
    return undone


async def _turns() -> None:
    """Whatever can go on does."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("command", [CONFIG, STATE])
@pytest.mark.parametrize("how", ["cancel", "error"])
async def test_the_answer_is_waited_for_before_abandon(how: str, command: int) -> None:
    """A Cloud Hypervisor that is left while it restores keeps the VM, paused."""
    with Guest(SMALL) as guest, Server() as server:
        undone = _undone(guest)

        async def destination() -> None:
            with await server.accept() as raw:
                await _answer_up_to(server, raw, command)
                if how == "cancel":
                    assert sending.cancel()
                reached.set()
                if command == STATE:
                    await undone.wait()  # the guest does not wait for the destination
                    assert guest.running
                await _turns()
                assert not raw.unread()
                await raw.send(OK)
                assert await server.request(raw) == (ABANDON, b"")
                await raw.send(OK)
                assert await raw.rest() == (b"", "eof")

        async def body() -> None:
            await reached.wait()
            if how == "error":
                raise ZeroDivisionError

        reached = asyncio.Event()
        serving = asyncio.create_task(destination())
        expected = MigrationCancelled if how == "cancel" else ZeroDivisionError
        sending = aiomigrate.send(guest, server.address)
        with pytest.raises(expected):
            async with sending:
                await body()
        await serving


@pytest.mark.parametrize("answer", [ERROR, b""])
async def test_there_is_no_abandon_where_the_answer_ends_everything(answer: bytes) -> None:
    with Guest(SMALL) as guest, Server() as server:

        async def destination() -> None:
            with await server.accept() as raw:
                await _answer_up_to(server, raw, STATE)
                assert sending.cancel()
                await _turns()
                await raw.send(answer)
                if not answer:
                    raw.end()
                assert (await raw.rest())[0] == b""

        serving = asyncio.create_task(destination())
        sending = aiomigrate.send(guest, server.address)
        with pytest.raises(MigrationCancelled):
            async with sending:
                pass
        await serving
        assert guest.running


@virtual
async def test_an_answer_is_not_waited_for_for_ever(clock: VirtualClockLoop) -> None:
    with Guest(SMALL) as guest, Server() as server:

        async def destination() -> None:
            with await server.accept() as raw:
                await _answer_up_to(server, raw, STATE)
                assert sending.cancel()
                assert await raw.rest() == (b"", "reset")

        began = clock.time()
        serving = asyncio.create_task(destination())
        sending = aiomigrate.send(
            guest, server.address, SendOptions(deadlines=Deadlines(abandon_s=7))
        )
        with pytest.raises(MigrationCancelled):
            async with sending:
                pass
        await serving
        assert clock.time() - began == pytest.approx(7, abs=0.1)
        assert guest.running


# What leaves the context


async def test_an_error_out_of_the_body_takes_the_failure_with_it() -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        guest.script["config"] = _fails(RuntimeError("no config"))
        with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - leaving raises
            async with (
                aiomigrate.receive(landing, _LOCAL, BRIEF) as reception,
                aiomigrate.send(guest, str(reception.address), HASTY) as sending,
            ):
                async for _ in sending:
                    pass
                raise ZeroDivisionError
        ours, theirs = caught.value.__notes__
    assert "no config" in ours
    assert "the VM is with the source" in ours
    assert "abandoned" in theirs or "the migration was cancelled" in theirs


async def test_a_cancelled_body_takes_the_failure_with_it() -> None:
    notes: list[str] = []
    captured = asyncio.Event()

    async def capture() -> None:
        captured.set()
        await asyncio.Event().wait()

    async def embed(guest: Guest, address: str, *, leaves: bool) -> None:
        try:
            async with aiomigrate.send(guest, address):
                if not leaves:
                    await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            notes.extend(error.__notes__)
            raise

    for leaves in (False, True):  # in its body, and while it waits for the end
        notes.clear()
        captured.clear()
        with Guest(SMALL) as guest, Landing() as landing:
            guest.script["capture"] = capture
            async with aiomigrate.receive(landing, _LOCAL, BRIEF) as reception:
                task = asyncio.create_task(embed(guest, str(reception.address), leaves=leaves))
                await captured.wait()
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                with pytest.raises(MigrationFailed, match="abandoned"):
                    await reception.result()
            assert guest.running
        (note,) = notes
        assert note.startswith("the migration was cancelled; the VM is with the source")


async def test_an_unknown_outcome_is_not_lost_behind_another_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        landing.script["resume"] = _fails(RuntimeError("half way"))
        with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - leaving raises
            async with (
                aiomigrate.receive(landing, _LOCAL, BRIEF) as reception,
                aiomigrate.send(guest, str(reception.address), HASTY) as sending,
            ):
                with suppress(MigrationError):
                    await sending.result()
                raise ZeroDivisionError
    assert all("it is unknown who has the VM" in note for note in caught.value.__notes__)
    told = [record for record in caplog.records if "it is unknown" in record.getMessage()]
    assert [(record.name, record.levelno) for record in told] == [
        ("aiomigrate", logging.WARNING)
    ] * 2


async def test_an_error_after_a_migration_that_succeeded_is_left_alone() -> None:
    with Guest(SMALL) as guest, Landing() as landing:
        with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - leaving raises
            async with (
                aiomigrate.receive(landing, _LOCAL, BRIEF) as reception,
                aiomigrate.send(guest, str(reception.address), HASTY) as sending,
            ):
                await sending.result()
                await reception.result()
                raise ZeroDivisionError
        assert landing.runs is True
    assert not hasattr(caught.value, "__notes__")


# A stored VM that is sent twice


def _outcomes(vm: Path) -> list[str]:
    history = json.loads((vm / "aiomigrate.json").read_bytes())["history"]
    return [entry["outcome"] for entry in history]


def _ends(landing: Landing, outcome: str) -> None:
    """Have a migration into `landing` end so."""
    if outcome == "unknown":
        landing.script["resume"] = _fails(RuntimeError("half way"))
    if outcome == "failed":
        landing.script["restore"] = _fails(RuntimeError("no room"))


def _assert_refused(sent: object, vm: Path) -> None:
    assert isinstance(sent, MigrationFailed)
    assert isinstance(sent.__cause__, UsageError)
    assert f"{vm}: it was, or is being, given to tcp:127.0.0.1:" in sent.what


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("outcome", ["done", "unknown"])
async def test_a_stored_vm_is_sent_once(outcome: str, force: bool, tmp_path: Path) -> None:
    vm = store_vm(tmp_path / "vm", SMALL)
    with Landing() as first, Landing() as second:
        _ends(first, outcome)
        async with StoredSource(vm, resume=True, force=force) as source:
            sent, _ = await migrate(source, first, receiving=BRIEF, sending=HASTY)
            assert isinstance(sent, Report if outcome == "done" else OutcomeUnknown)
            sent, received = await migrate(source, second, receiving=BRIEF, sending=HASTY)
            _assert_refused(sent, vm)
            assert isinstance(received, MigrationFailed)
        assert second.calls == []
    assert _outcomes(vm) == [outcome]
    with pytest.raises(UsageError, match="--force"):
        async with StoredSource(vm):
            pass


async def test_a_stored_vm_is_sent_again_after_a_failure(tmp_path: Path) -> None:
    vm = store_vm(tmp_path / "vm", SMALL)
    with Landing() as first, Landing() as second:
        _ends(first, "failed")
        async with StoredSource(vm, resume=True) as source:
            sent, _ = await migrate(source, first, receiving=BRIEF, sending=HASTY)
            assert isinstance(sent, MigrationFailed)
            sent, received = await migrate(source, second, receiving=BRIEF, sending=HASTY)
            assert isinstance(sent, Report)
            assert isinstance(received, Report)
        assert second.runs is True
    assert _outcomes(vm) == ["failed", "done"]


@pytest.mark.parametrize("outcome", ["done", "unknown", "failed"])
@pytest.mark.parametrize("when", ["configure", "restore"])
async def test_a_stored_vm_is_not_sent_to_two(outcome: str, when: str, tmp_path: Path) -> None:
    """The second migration begins while the first one's Config or State is unanswered."""
    vm = store_vm(tmp_path / "vm", SMALL)
    with Landing() as first, Landing() as second:
        _ends(first, outcome)
        go_on = first.script.get(when, lambda: None)
        async with (
            StoredSource(vm, resume=True) as source,
            aiomigrate.receive(second, "tcp:127.0.0.1:0") as waiting,
        ):

            async def send_to_the_other() -> None:
                async with aiomigrate.send(source, str(waiting.address)) as other:
                    with pytest.raises(UsageError, match="a migration under way is sending"):
                        await other.result()
                go_on()

            first.script[when] = send_to_the_other
            sent, _ = await migrate(source, first, receiving=BRIEF, sending=HASTY)
            expected = {"done": Report, "unknown": OutcomeUnknown, "failed": MigrationFailed}
            assert isinstance(sent, expected[outcome])
            waiting.cancel()
            with pytest.raises(MigrationCancelled):
                await waiting.result()
        assert second.calls == []
    assert _outcomes(vm) == [outcome]
