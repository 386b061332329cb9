"""A real Cloud Hypervisor's snapshots become stored VMs, and ours become its snapshots."""

from pathlib import Path

import pytest

from aiomigrate import SnapshotKind, convert
from tests.interop.test_cloud_hypervisor import FOUND, give, guest, installation, take
from tests.support.cloud_hypervisor import COUNTERS, Guest, Installation, Vmm, work_of

__all__ = ["guest", "installation"]  # fixtures

pytestmark = [pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Where the two VMMs work."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    return first, second


async def test_its_snapshot_is_converted_and_sent(
    installation: Installation, guest: Guest, tmp_path: Path, places: tuple[Path, Path]
) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    with Vmm(installation, guest, places[0], boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        source.pause()
        source.snapshot(snapshot)
        work = source.work

    assert await convert(snapshot, tmp_path / "vm") is SnapshotKind.STORED
    assert work_of(tmp_path / "vm" / "memory-0") == work

    with Vmm(installation, guest, places[1], boots=False) as destination:
        await give(tmp_path / "vm", destination, 1, installation.dialect, resume=True)
        destination.wait_work(more_than=work)
        assert destination.state == "Running"


async def test_what_we_took_is_converted_and_restored_by_it(
    installation: Installation, guest: Guest, tmp_path: Path, places: tuple[Path, Path]
) -> None:
    with Vmm(installation, guest, places[0], boots=True) as source:
        source.wait_work(more_than=COUNTERS)
        source.pause()
        await take(source, tmp_path / "vm", 1)
    work = work_of(next((tmp_path / "vm").glob("memory-*")))

    assert await convert(tmp_path / "vm", tmp_path / "snapshot") is SnapshotKind.FILE

    with Vmm(installation, guest, places[1], boots=False) as destination:
        destination.restore(tmp_path / "snapshot")
        assert destination.state == "Paused"
        assert destination.work == work
        destination.resume()
        destination.wait_work(more_than=work)
