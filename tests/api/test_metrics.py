"""What Prometheus reads."""

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from aiomigrate.api.migrations import KEPT
from tests.api.conftest import Client, Machine
from tests.api.test_migrating import destination, send_to
from tests.support.vms import Guest, Landing


async def scrape(client: Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = await client.get("/metrics")
    assert answer.header("Content-Type").startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"aiomigrate_{name}", frozenset(labels.items())


async def test_before_anything(client: Client) -> None:
    found = await scrape(client)
    assert found[key("bytes_total", direction="send")] == 0
    assert found[key("migrations_running", direction="receive")] == 0
    assert found[key("event_listeners")] == 0
    assert found[key("longest_callback_seconds")] >= 0


async def test_a_migration(client: Client, machine: Machine) -> None:
    with Guest() as guest:
        machine.guest = guest
        held = asyncio.Event()
        guest.script["capture"] = held.wait
        async with destination(Landing()) as reception:
            await client.put("vm.send-migration", send_to(reception))
            one = await client.until(lambda one: one["progress"]["phase"] == "switchover")
            running = await scrape(client)
            held.set()
            one = await client.until(lambda one: one["state"] == "done")
        found = await scrape(client)
    assert running[key("migrations_running", direction="send")] == 1
    assert running[key("migration_total_bytes", vm="web-1", direction="send")] == 4 << 20
    assert running[key("migration_window_bytes", vm="web-1", connection="main")] > 0
    report, progress = one["report"], one["progress"]
    for name, value in {
        "bytes": report["bytes"],
        "zero_bytes": report["zero_bytes"],
        "ranges": progress["ranges"],
        "iterations": report["iterations"],
        "lanes_lost": 0,
        "retries": 0,
    }.items():
        assert found[key(f"{name}_total", direction="send")] == value, name
    assert progress["ranges"] > 0
    assert found[key("migrations_total", direction="send", state="done")] == 1
    assert found[key("migrations_running", direction="send")] == 0
    labels = {"vm": "web-1", "direction": "send"}
    stages = {
        stage.removesuffix("_ms"): milliseconds
        for stage, milliseconds in report["downtime"].items()
    }
    for stage, milliseconds in {**stages, "all": report["downtime_ms"]}.items():
        assert found[key("last_downtime_seconds", **labels, stage=stage)] == milliseconds / 1000


async def test_totals_never_shrink(client: Client, machine: Machine) -> None:
    """Migrations that have left the list still count."""
    with Guest() as guest:
        machine.guest = guest
        for _ in range(KEPT + 2):
            await client.put("vm.send-migration", {"destination_url": "unix:/nowhere"})
            await client.until(lambda one: one["state"] == "failed")
        found = await scrape(client)
        listed = (await client.get("vm.migrations")).json
    assert found[key("migrations_total", direction="send", state="failed")] == KEPT + 2
    assert KEPT <= len(listed) <= KEPT + 1
