"""What an embedder gets wrong: the error says what, where and what was expected, names the owner of
the VM, and the guest is as it was.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import aiomigrate
from aiomigrate import (
    BitmapDirtyLog,
    CleanLog,
    CombinedDirtyLog,
    Deadlines,
    GuestMemory,
    MigrationFailed,
    Owner,
    Report,
    SendOptions,
    UsageError,
    VmConfig,
)
from tests.support.clock import VirtualClockLoop
from tests.support.image import PAGE, Mapping
from tests.support.vms import MIB, Guest, Landing, config_of, migrate

pytestmark = pytest.mark.usefixtures("no_leaks")
virtual = pytest.mark.asyncio(loop_factories=["virtual"])

LOW = Mapping(0, 0, 3 * MIB + 5 * PAGE, "mem0", virtio_mem=False, file_offset=0)
HIGH = Mapping(4, 1 << 32, 2 * MIB, "mem0", virtio_mem=False, file_offset=0)


def fail(why: str) -> Callable[[], None]:
    def action() -> None:
        raise RuntimeError(why)

    return action


async def refused(guest: Guest, landing: Landing, **options: Any) -> str:
    """Migrate in vain: what the source's error says; the guest is as it was, and can move."""
    sent, received = await migrate(guest, landing, sending=SendOptions(**options))
    assert isinstance(sent, MigrationFailed)
    assert sent.owner is Owner.SOURCE
    assert isinstance(received, MigrationFailed)
    assert not guest.dirty.on
    assert not guest.memory.claimed
    return str(sent)


async def moves(guest: Guest) -> None:
    """A second migration works."""
    guest.script.clear()
    with Landing() as landing:
        sent, received = await migrate(guest, landing)
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report)
        assert landing.digest() == guest.digest()


# What the Config says


OTHER_MAPS: dict[str, tuple[dict[str, int], str]] = {
    "larger": ({"size": 3 * MIB}, "maps slot 4 of 3145728 bytes at 0x100000000 where its memory"),
    "elsewhere": ({"gpa": 1 << 33}, "bytes at 0x200000000 where its memory has slot 4 of 2097152"),
    "another slot": ({"slot": 5}, "maps slot 5 of 2097152 bytes at 0x100000000 where its memory"),
    "not aligned": ({"gpa": (1 << 32) + 512}, "its gpa 0x100000200 is no multiple of 4096"),
    "overlapping": ({"gpa": 3 * MIB}, "slots 0 and 4 overlap: 0 ends at 0x304fff, 4 begins at 0x3"),
}


@pytest.mark.parametrize("case", OTHER_MAPS)
async def test_a_config_of_other_memory_is_not_sent(case: str) -> None:
    change, message = OTHER_MAPS[case]
    with Guest((LOW, HIGH)) as guest, Landing() as landing:
        right = guest.config_bytes
        guest.config_bytes = config_of([LOW, Mapping(**{**vars(HIGH), **change})])
        text = await refused(guest, landing)
        assert text.startswith("source: config ")
        assert message in text
        assert text.endswith("; the VM is with the source")
        assert landing.calls == []
        guest.config_bytes = right
        await moves(guest)


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        ((LOW,), "maps nothing where its memory has slot 4 of"),
        ((LOW, HIGH, Mapping(7, 1 << 40, MIB, "mem0", False, 0)), "maps slot 7 of .* has nothing;"),
    ],
    ids=["less", "more"],
)
async def test_a_config_maps_all_memory_and_no_other(
    mappings: tuple[Mapping, ...], message: str
) -> None:
    with Guest((LOW, HIGH)) as guest, Landing() as landing:
        guest.config_bytes = config_of(mappings)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(await refused(guest, landing))
        assert landing.calls == []


# Dirty bitmaps


async def test_a_bitmap_that_is_shorter_than_its_mapping() -> None:
    with Guest((LOW, HIGH)) as guest, Landing() as landing:
        guest.tamper = lambda bitmaps: [bitmaps[0], bitmaps[1][:-1]]
        assert await refused(guest, landing) == (
            "source: dirty.collect gave no such bitmaps: the dirty bitmap of slot 4 must be uint64 "
            "of shape (8,), not uint64 of shape (7,); the VM is with the source"
        )
        assert guest.running
        guest.tamper = lambda bitmaps: bitmaps
        await moves(guest)


async def test_a_collect_that_gives_nothing_at_all() -> None:
    """A forgotten `return` is not the same as nothing dirty: what was written would be lost."""
    with Guest((LOW, HIGH)) as guest, Landing() as landing:
        guest.tamper = lambda _: None  # type: ignore[assignment,return-value]
        assert await refused(guest, landing) == (
            "source: dirty.collect gave no such bitmaps: the dirty log gave None instead of a "
            "sequence of bitmaps; the VM is with the source"
        )
        guest.tamper = lambda bitmaps: bitmaps
        await moves(guest)


async def test_an_exchange_that_gives_too_little_is_named() -> None:
    memory_map = VmConfig.parse(config_of([LOW, HIGH])).memory_map
    answers = [(), (), [np.zeros(13, np.uint64), np.zeros(7, np.uint64)]]
    log = BitmapDirtyLog(memory_map, lambda _: answers.pop(0))
    await log.start()
    assert list(await log.collect()) == []
    with pytest.raises(ValueError, match=r"slot 4 must be uint64 of shape \(8,\).*\(7,\)"):
        await log.collect()


async def test_a_log_among_several_that_gives_nothing_at_all() -> None:
    class Forgetful(CleanLog):
        async def collect(self) -> Any:
            return None

    memory_map = VmConfig.parse(config_of([LOW, HIGH])).memory_map
    log = CombinedDirtyLog(BitmapDirtyLog(memory_map, lambda fresh: fresh), Forgetful())
    await log.start()
    with pytest.raises(ValueError, match="the dirty log gave None"):
        await log.collect()


async def test_logs_of_different_memory_are_told_apart() -> None:
    class Short(CleanLog):
        async def collect(self) -> list[np.ndarray[Any, np.dtype[np.uint64]]]:
            return [np.zeros(13, np.uint64), np.zeros(7, np.uint64)]

    memory_map = VmConfig.parse(config_of([LOW, HIGH])).memory_map
    log = CombinedDirtyLog(BitmapDirtyLog(memory_map, lambda fresh: fresh), Short())
    await log.start()
    with pytest.raises(ValueError, match=r"of \[13, 8\] and of \[13, 7\] words"):
        await log.collect()


# Hooks that do not do what they should


class Throttled(Guest):
    """Writes all of its memory in each iteration, whose second is over then."""

    async def throttle(self, percent: int) -> None:
        await self._hook(f"throttle {percent}")

    async def _hook(self, name: str) -> None:
        if name.startswith("collect ") and self.running:
            asyncio.get_running_loop().skip(1.0)  # type: ignore[attr-defined]
            for at in range(0, MIB, PAGE):
                self.write(at, bytes([self.collects]))
        await super()._hook(name)


@virtual
@pytest.mark.parametrize("hangs", [True, False])
async def test_a_throttle_that_does_not_work(clock: VirtualClockLoop, hangs: bool) -> None:
    with Throttled() as guest, Landing() as landing:
        guest.script["throttle 20"] = asyncio.Event().wait if hangs else fail("no such cgroup")
        why = "did not return in 20 s" if hangs else "failed: RuntimeError('no such cgroup')"
        deadlines = Deadlines(embedder_s=20)
        assert await refused(guest, landing, deadlines=deadlines) == (
            f"source: throttle {why}; the VM is with the source"
        )
        assert guest.calls[-3:] == ["throttle 20", "throttle 0", "stop"]
        assert guest.running
        guest.script.clear()
        guest.script["throttle 20"] = lambda: setattr(guest, "running", False)  # it writes no more
        with Landing() as later:
            sent, _ = await migrate(guest, later)
            assert isinstance(sent, Report)
            assert later.digest() == guest.digest()


@virtual
@pytest.mark.parametrize("resumes", [True, False])
async def test_a_pause_that_never_returns(clock: VirtualClockLoop, resumes: bool) -> None:
    """The VM is resumed, or it is said that it may not run."""
    began = clock.time()
    with Guest() as guest, Landing() as landing:
        guest.script["pause"] = asyncio.Event().wait
        if not resumes:
            guest.script["resume"] = asyncio.Event().wait
        text = await refused(guest, landing, deadlines=Deadlines(embedder_s=40))
        assert guest.calls[-2:] == ["resume", "stop"]
        what = "source: pause did not return in 40 s; the VM is with the source"
        still = ". source: resume did not return in 40 s: the guest may be paused still"
        assert text == (what if resumes else what + still)
        assert clock.time() - began == pytest.approx(40 if resumes else 80, abs=5)
        await moves(guest)


@pytest.mark.parametrize("hook", ["collect 1", "pause", "capture"])
async def test_a_guest_that_ends_while_it_is_migrated(hook: str) -> None:
    with Guest() as guest, Landing() as landing:
        guest.script[hook] = fail("the guest has ended")
        guest.script["resume"] = fail("there is no guest")
        text = await refused(guest, landing)
        assert text.startswith(
            f"source: {'dirty.' if 'collect' in hook else ''}{hook.removesuffix(' 1')} failed: "
            "RuntimeError('the guest has ended'); the VM is with the source"
        )
        told = "resume failed: RuntimeError('there is no guest'): the guest may be paused still"
        assert (told in text) is (hook != "collect 1")
        assert landing.calls[-1] == "discard"


# One VM, one migration


async def test_memory_that_is_closed_is_not_sent() -> None:
    with Guest() as guest:
        guest.memory.close()
        async with aiomigrate.send(guest, "tcp:127.0.0.1:9") as sending:
            with pytest.raises(UsageError, match="source: guest memory is closed"):
                await sending.result()
        assert sending.progress.phase is aiomigrate.Phase.FAILED
        assert guest.calls == []


async def test_a_vm_is_sent_by_one_migration_at_a_time() -> None:
    """Both would come to their ends: the VM would run at two places."""
    with Guest() as guest, Landing() as landing, Landing() as other:

        async def send_again() -> None:
            async with aiomigrate.receive(other, "tcp:127.0.0.1:0") as reception:
                second = aiomigrate.send(guest, str(reception.address))
                with pytest.raises(UsageError) as caught:
                    async with second:
                        await second.result()
                assert second.progress.phase is aiomigrate.Phase.FAILED
                assert str(caught.value) == (
                    "source: a migration under way is sending this guest's memory of 4194304 bytes"
                )
                reception.cancel()
                with pytest.raises(aiomigrate.MigrationCancelled):
                    await reception.result()

        guest.script["capture"] = send_again
        sent, received = await migrate(guest, landing)
        assert isinstance(sent, Report), sent
        assert isinstance(received, Report)
        assert (landing.runs, other.runs) == (True, None)
        assert other.calls == []
        assert guest.calls.count("config") == 1


async def test_a_vm_is_not_migrated_to_itself() -> None:
    """A VMM that receives into the memory of the guest that it sends would destroy it."""

    class Itself(Landing):
        async def configure(self, config: VmConfig, source: str) -> GuestMemory:
            return guest.memory

        async def discard(self, reason: BaseException) -> None:
            self.discarded.append(reason)

    with Guest() as guest, Itself() as landing:
        before = guest.digest()
        sent, received = await migrate(guest, landing)
        assert isinstance(sent, MigrationFailed)
        assert "the destination refused Config" in str(sent)
        assert isinstance(received, MigrationFailed)
        assert str(received) == (
            "destination: configure gave memory of a VM that is being migrated away: a VM cannot "
            "be migrated to itself; the VM is with the source"
        )
        assert (guest.digest(), guest.running) == (before, True)
        assert len(landing.discarded) == 1
        await moves(guest)
