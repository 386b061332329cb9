import asyncio
import logging

import pytest

from aiomigrate import GuestNotStarted, MigrationFailed, OutcomeUnknown, Owner
from aiomigrate.hooks import Hooks
from tests.support.clock import VirtualClockLoop


async def _gives(value: int) -> int:
    return value


async def _raises(error: Exception) -> None:
    raise error


def _hooks(warnings: list[str] | None = None, within: float = 30.0) -> Hooks:
    return Hooks("source", within, [] if warnings is None else warnings)


async def test_a_hook_gives_its_result() -> None:
    assert await _hooks().call("pause", _gives(7)) == 7


async def test_an_error_is_named_and_kept_as_the_cause() -> None:
    error = ValueError("no disk")
    with pytest.raises(
        MigrationFailed, match=r"source: pause failed: ValueError\('no disk'\)"
    ) as e:
        await _hooks().call("pause", _raises(error))
    assert e.value.__cause__ is error
    assert e.value.owner is Owner.SOURCE


@pytest.mark.parametrize("error", [GuestNotStarted("no"), OutcomeUnknown("lost")])
async def test_what_the_engine_means_itself_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await _hooks().call("resume", _raises(error))
    assert caught.value is error


@pytest.mark.asyncio(loop_factories=["virtual"])
async def test_a_hook_that_hangs_is_given_up(clock: VirtualClockLoop) -> None:
    began = clock.time()
    with pytest.raises(MigrationFailed, match="source: pause did not return in 30 s"):
        await _hooks().call("pause", asyncio.Event().wait())
    assert clock.time() - began == pytest.approx(30)


async def test_a_timeout_of_the_hook_itself_is_its_failure() -> None:
    """It did return: saying that it did not would send people to the wrong place."""
    with pytest.raises(MigrationFailed, match="pause failed: TimeoutError"):
        await _hooks().call("pause", _raises(TimeoutError("the VMM's socket")))


@pytest.mark.parametrize("error", [ValueError("no disk"), GuestNotStarted("no"), TimeoutError()])
async def test_an_attempt_that_fails_is_a_warning(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    warnings: list[str] = []
    await _hooks(warnings).attempt("release", _raises(error))
    (warning,) = warnings
    assert "source: release failed: " in warning
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "aiomigrate.source")


async def test_a_cancellation_passes() -> None:
    warnings: list[str] = []
    task = asyncio.create_task(_hooks(warnings).attempt("release", _wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert warnings == []


async def _wait() -> None:
    await asyncio.Event().wait()
