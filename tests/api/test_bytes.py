"""The exact bytes of Cloud Hypervisor's client, and what it needs of the answer."""

import re

import pytest

from aiomigrate.api import VmState
from aiomigrate.api.places import Places
from tests.api.conftest import Client, Machine
from tests.support.vms import Guest

SEND_V54 = (
    b'{"destination_url":"tcp:127.0.0.1:1","local":false,"preserve_source":false,"downtime_ms":300,'
    b'"timeout_s":3600,"timeout_strategy":"Cancel","connections":4,"tls_dir":null,'
    b'"memory_mode":"Precopy"}'
)
SEND_V52 = (
    b'{"destination_url":"tcp:127.0.0.1:1","local":false,"downtime_ms":300,"timeout_s":3600,'
    b'"timeout_strategy":"Ignore","connections":1}'
)
RECEIVE = (
    b'{"receiver_url":"tcp:nowhere.invalid:1","tls_dir":null,"memory_mode":"Precopy",'
    b'"vfio_fds":null,"iommufd_fd":null,"zone_updates":[]}'
)
RESTORE = (
    b'{"source_url":"file:///nowhere","prefault":false,"memory_restore_mode":"Copy","net_fds":null,'
    b'"vfio_fds":null,"iommufd_fd":null,"resume":true,"zone_updates":[]}'
)


def pieces(line: str, body: bytes | None = None) -> list[bytes]:
    """As `strace` shows them, written out."""
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n".encode()
    if body is None:
        return [head, b"\r\n"]
    return [head, b"Content-Length: %d\r\n" % len(body), b"\r\n", body]


async def test_success_with_a_body(client: Client) -> None:
    answer = await client.raw(*pieces("GET /api/v1/vmm.ping"))
    assert answer.status_line == b"HTTP/1.1 200 "
    assert b"Content-Type: application/json" in answer.headers
    assert b"Content-Length: %d" % len(answer.body) in answer.headers
    assert set(answer.json) == {"build_version", "version", "pid", "features"}


async def test_success_without_a_body(client: Client, machine: Machine) -> None:
    machine.guest = Guest()
    answer = await client.raw(*pieces("PUT /api/v1/vm.pause"))
    assert answer.status_line == b"HTTP/1.1 204 "
    assert answer.body == b""
    assert not any(line.lower().startswith(b"content-length") for line in answer.headers)
    info = await client.raw(*pieces("GET /api/v1/vm.info"))
    assert info.json == {
        "config": {"cpus": {"boot_vcpus": 1}},
        "state": VmState.PAUSED.value,
        "memory_actual_size": 4 << 20,
    }


@pytest.mark.parametrize(
    ("line", "body", "status", "outer"),
    [
        ("GET /api/v1/vm.info", None, 404, "The VM info is not available"),
        ("PUT /api/v1/vm.pause", None, 500, "The VM could not be paused"),
        ("PUT /api/v1/vm.resume", None, 500, "The VM could not resume"),
        (
            "PUT /api/v1/vm.snapshot",
            b'{"destination_url":"file:///nowhere"}',
            500,
            "The VM could not be snapshotted",
        ),
        ("PUT /api/v1/vm.restore", RESTORE, 500, "The VM could not be restored"),
        ("PUT /api/v1/vm.receive-migration", RECEIVE, 500, "Error starting migration receiver"),
    ],
)
async def test_errors_are_lists_outermost_first(
    client: Client, line: str, body: bytes | None, status: int, outer: str
) -> None:
    answer = await client.raw(*pieces(line, body))
    assert answer.status_line == b"HTTP/1.1 %d " % status
    assert answer.json[:2] == ["Error from API", outer]
    assert len(answer.json) >= 3
    assert answer.body.isascii()


@pytest.mark.parametrize("body", [SEND_V54, SEND_V52])
async def test_what_it_sends_of_a_migration_is_taken(
    client: Client, machine: Machine, body: bytes
) -> None:
    machine.guest = Guest()
    answer = await client.raw(*pieces("PUT /api/v1/vm.send-migration", body))
    assert answer.status_line == b"HTTP/1.1 204 "
    where = answer.header("Location")
    assert re.fullmatch(r"/api/v1/vm\.migration\?migration=[0-9a-f]{16}", where)
    ended = await client.until(lambda one: one["state"] == "failed", where)
    assert ended["owner"] == "source"  # nobody listens there: the answer does not tell that
    assert machine.guest.running


async def test_its_answers_are_ascii(client: Client) -> None:
    answer = await client.put("vm.snapshot", {"destination_url": "file:///né/ü"})
    assert answer.status == 500
    assert answer.body.isascii()
    assert answer.json[0] == "Error from API"
    answer = await client.put("vm.snapshot", {"ü": "né"})
    assert answer.body.isascii()
    assert "ü: Extra inputs are not permitted" in answer.json


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "vm.pause"), ("PUT", "vm.info"), ("DELETE", "vm.info"), ("POST", "vm.resume")],
)
async def test_a_wrong_method_of_its_paths_is_400(client: Client, method: str, path: str) -> None:
    answer = await client.ask(method, path)
    assert answer.status_line == b"HTTP/1.1 400 "


async def test_an_unknown_path_is_404(client: Client) -> None:
    assert (await client.get("vm.nothing")).status_line == b"HTTP/1.1 404 "


async def test_a_body_where_none_belongs_is_400(client: Client, machine: Machine) -> None:
    machine.guest = Guest()
    answer = await client.put("vm.pause", {})
    assert answer.status == 400
    assert machine.guest.running


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"connections": 0}, "connections"),
        ({"downtime_ms": 0}, "downtime_ms"),
        ({"timeout_strategy": "cancel"}, "timeout_strategy"),
        ({"connections": "4"}, "connections"),
        ({"local": 1}, "local"),
        ({"memory_mode": "Postcopy"}, "memory_mode"),
        ({"tls_dir": ""}, "tls_dir"),
        ({"downtime": 300}, "downtime"),
    ],
)
async def test_what_cannot_be_meant_is_400_and_named(
    client: Client, machine: Machine, change: dict[str, object], named: str
) -> None:
    machine.guest = Guest()
    body = {"destination_url": "tcp:127.0.0.1:1"} | change
    answer = await client.put("vm.send-migration", body)
    assert answer.status == 400
    assert answer.json[0] == "Failed to deserialize JSON"
    assert any(line.startswith(f"{named}: ") for line in answer.json[1:]), answer.json
    assert (await client.get("vm.migrations")).json == []


_ELSEWHERE = "for the Cloud Hypervisor that this VM is sent to"


@pytest.mark.parametrize(
    ("name", "body", "instead"),
    [
        ("send-migration", {"memory_mode": "Postcopy"}, "with `switch_over_now`"),
        ("send-migration", {"preserve_source": True}, "`vm.snapshot` keeps a copy"),
        ("receive-migration", {"memory_mode": "Postcopy"}, "let the source send with `Precopy`"),
        ("receive-migration", {"zone_updates": [{"id": "a", "host_numa_node": 1}]}, _ELSEWHERE),
        ("receive-migration", {"vfio_fds": [{"id": "a", "fd": None}]}, _ELSEWHERE),
        ("receive-migration", {"iommufd_fd": 3}, _ELSEWHERE),
        (
            "restore",
            {"memory_restore_mode": "OnDemand"},
            "offload restore --on-demand` gives it",
        ),
        ("restore", {"prefault": True}, "the VMM that will run it does so"),
        ("restore", {"zone_updates": [{"id": "a", "host_numa_node": 1}]}, _ELSEWHERE),
        ("restore", {"net_fds": [{"id": "a", "num_fds": 1, "fds": None}]}, _ELSEWHERE),
    ],
)
async def test_what_is_not_offered_is_named_with_what_to_do_instead(
    client: Client, name: str, body: dict[str, object], instead: str
) -> None:
    url = {"send-migration": "destination_url", "receive-migration": "receiver_url"}
    asked = {url.get(name, "source_url"): "tcp:127.0.0.1:1" if name in url else "file:///x"} | body
    answer = await client.put(f"vm.{name}", asked)
    assert answer.status == 400
    _, said = answer.json
    assert said.startswith(f"{next(iter(body))}: ")
    assert "not offered" in said
    assert instead in said


@pytest.mark.parametrize(
    "change",
    [
        {"destination_url": "http://h"},
        {"destination_url": "unix:"},
        {"connections": 129},
        {"destination_url": "unix:/tmp/x", "connections": 2},
        {"local": True},
        {"tls_dir": "/nowhere"},
        {"destination_url": "unix:/tmp/x", "tls_dir": "/nowhere"},
    ],
)
async def test_what_makes_no_sense_together_is_500(
    client: Client, machine: Machine, change: dict[str, object]
) -> None:
    machine.guest = Guest()
    answer = await client.put("vm.send-migration", {"destination_url": "tcp:h:1"} | change)
    assert answer.status == 500
    assert answer.json[:2] == ["Error from API", "Error starting migration sender"]


async def test_a_fault_of_our_own_does_not_look_like_a_refusal(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Places) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Places, "names", fail)
    answer = await client.get("vmm.vms")
    assert (answer.status_line, answer.json) == (b"HTTP/1.1 500 ", ["RuntimeError('a bug')"])
    monkeypatch.setattr("aiomigrate.api.http._read", fail)
    answer = await client.get("vmm.ping")
    assert answer.status_line == b"HTTP/1.1 500 "
    assert answer.json[0] == "a fault of the service"
    assert [record.levelname for record in caplog.records].count("ERROR") == 2


async def test_bad_json_is_400(client: Client) -> None:
    for body in (b"", b"{", b"[]", b'{"destination_url": "\xff"}', b"[" * 5000):
        answer = await client.put("vm.snapshot", body or None)
        assert answer.status == 400, body
