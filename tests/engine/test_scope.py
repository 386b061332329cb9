"""Log records of a migration say of which, about which connection, in which phase."""

import logging
from collections.abc import Iterator

import pytest

from aiomigrate import Extension, Migration, ReceiveOptions, SendOptions, receive, send
from aiomigrate.scope import log_fields
from aiomigrate.testing import Direction, FaultRelay, Reset
from tests.support.vms import Guest, Landing

LOCAL = "tcp:127.0.0.1:0"
CHUNK = 64 << 10


class Catcher(logging.Handler):
    """What `log_fields` says when a record is emitted."""

    def __init__(self) -> None:
        super().__init__()
        self.caught: list[tuple[str, str, dict[str, str]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.caught.append((record.name, record.getMessage(), log_fields()))


@pytest.fixture
def catcher() -> Iterator[Catcher]:
    handler = Catcher()
    log = logging.getLogger("aiomigrate")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.removeHandler(handler)
    log.setLevel(before)


async def migrate_over(
    guest: Guest, landing: Landing, extensions: Extension, connections: int = 1
) -> tuple[Migration, Migration, str]:
    async with receive(landing, LOCAL, ReceiveOptions(extensions=extensions)) as reception:
        first = reception.id
        options = SendOptions(connections=connections)
        async with send(guest, str(reception.address), options) as migration:
            await migration.result()
        await reception.result()
    return migration, reception, first


def test_outside_of_a_migration() -> None:
    assert log_fields() == {}


async def test_both_sides_have_one_id(catcher: Catcher) -> None:
    seen: dict[str, dict[str, str]] = {}
    with Guest() as guest, Landing() as landing:
        guest.script["capture"] = lambda: seen.__setitem__("source", log_fields())
        landing.script["restore"] = lambda: seen.__setitem__("destination", log_fields())
        migration, reception, first = await migrate_over(
            guest, landing, ReceiveOptions().extensions, connections=2
        )
    assert migration.id == reception.id != first
    assert len(migration.id) == 16
    for fields in seen.values():
        assert fields == {"migration": migration.id, "connection": "main", "phase": "switchover"}
    assert log_fields() == {}
    assert catcher.caught
    for logger, message, fields in catcher.caught:
        assert set(fields) == {"migration", "connection", "phase"}, (logger, message)
        assert fields["migration"] in {migration.id, first}
        assert "token" not in message


async def test_a_plain_source_names_nothing() -> None:
    with Guest() as guest, Landing() as landing:
        migration, reception, first = await migrate_over(guest, landing, Extension(0))
    assert reception.id == first != migration.id


async def test_a_lane_that_is_lost_says_which(catcher: Catcher) -> None:
    """And what it left unanswered is counted as sent again."""
    lost = Reset(connection=1, direction=Direction.UP, after=CHUNK)
    options = SendOptions(connections=2, chunk_bytes=CHUNK)
    with Guest() as guest, Landing() as landing:
        async with (
            receive(landing, LOCAL) as reception,
            FaultRelay(str(reception.address), faults=[lost]) as relay,
            send(guest, relay.address, options) as migration,
        ):
            await migration.result()
            await reception.result()
        assert landing.digest() == guest.at_pause
    found = [
        (message.split(" was lost")[0], fields["connection"])
        for logger, message, fields in catcher.caught
        if logger == "aiomigrate.source" and " was lost" in message
    ]
    assert found
    for name, connection in found:
        assert name.startswith("lane ")
        assert connection == name
    assert migration.progress.chunks_resent >= migration.progress.lanes_lost == 1
