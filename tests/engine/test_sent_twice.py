"""A stored VM is given to one destination only, whoever sends it again."""

import json
from pathlib import Path

import pytest

import aiomigrate
from aiomigrate import (
    MigrationCancelled,
    MigrationFailed,
    OutcomeUnknown,
    Report,
    StoredSource,
    UsageError,
)
from tests.engine.engine_hooks import BRIEF, HASTY, fails
from tests.support.hostile import SMALL
from tests.support.vms import Landing, migrate, store_vm

pytestmark = pytest.mark.usefixtures("no_leaks")


def _outcomes(vm: Path) -> list[str]:
    history = json.loads((vm / "aiomigrate.json").read_bytes())["history"]
    return [entry["outcome"] for entry in history]


def _ends(landing: Landing, outcome: str) -> None:
    """Have a migration into `landing` end so."""
    if outcome == "unknown":
        landing.script["resume"] = fails(RuntimeError("half way"))
    if outcome == "failed":
        landing.script["restore"] = fails(RuntimeError("no room"))


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
