"""What other pages in the operator's browser may do with a service: nothing."""

import asyncio
import socket

import pytest

from aiomigrate.api import Service, open_tcp, serve
from tests.api.conftest import Answer, Client, read_answer

OURS = ["localhost:9440", "127.0.0.1:9440", "[::1]:9440", "10.1.2.3", "vms", "a.localhost"]


async def ask(client: Client, method: str, path: str, body: str = "", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    if method == "PUT":
        lines.append(f"Content-Length: {len(body)}")
    return await client.raw(("\r\n".join([*lines, "", ""]) + body).encode())


@pytest.mark.parametrize("host", [*OURS, socket.gethostname()])
async def test_names_that_no_stranger_can_own(client: Client, host: str) -> None:
    assert (await ask(client, "GET", "/metrics", Host=host)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example:9440", "127.0.0.1.evil.example", "a b", "localhost.:1"]
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/events", "/api/v1/vm.migrations"])
async def test_a_name_that_was_led_here_is_refused(client: Client, host: str, path: str) -> None:
    answer = await ask(client, "GET", path, Host=host)
    assert answer.status == 403
    assert host in answer.json[0]
    assert "localhost" in answer.json[0]


async def test_clients_without_a_name_are_no_browsers(client: Client) -> None:
    answer = await client.raw(b"GET /api/v1/vmm.ping HTTP/1.0\r\n\r\n")
    assert answer.status == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:8000", "http://127.0.0.1:9440"],
)
async def test_pages_of_others_change_nothing_and_hear_nothing(client: Client, origin: str) -> None:
    for method, path in (("PUT", "/api/v1/vm.cancel-migration"), ("GET", "/events")):
        answer = await ask(client, method, path, Host="localhost:9440", Origin=origin)
        assert answer.status == 403
        assert f"a page of {origin} may not use this service" in answer.json[0]


async def test_its_own_page_may(client: Client) -> None:
    own = {"Host": "localhost:9440", "Origin": "http://localhost:9440"}
    own["Sec_Fetch_Site"] = "same-origin"
    assert (await ask(client, "GET", "/api/v1/vm.migrations", **own)).status == 200
    assert (await ask(client, "PUT", "/api/v1/vm.cancel-migration", **own)).status == 404


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_others_cannot_have_it_loaded_but_link_to_it(client: Client, site: str) -> None:
    loading = {"Host": "localhost:9440", "Sec_Fetch_Site": site}
    answer = await ask(client, "GET", "/api/v1/vm.migrations", **loading, Sec_Fetch_Mode="no-cors")
    assert (answer.status, answer.json) == (
        403,
        ["another page may not use this service; its own page may"],
    )
    for method, status in (("GET", 200), ("PUT", 403)):
        path = "/" if method == "GET" else "/api/v1/vm.pause"
        answer = await ask(client, method, path, **loading, Sec_Fetch_Mode="navigate")
        assert answer.status == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 404),
        ("application/json; charset=utf-8", 404),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_body_is_json(client: Client, kind: str, status: int) -> None:
    answer = await ask(
        client,
        "PUT",
        "/api/v1/vm.tune-migration",
        '{"downtime_ms":1}',
        Host="localhost",
        Content_Type=kind,
    )
    assert answer.status == status
    assert answer.json == (
        ["there is no migration"] if status == 404 else [f"a body is application/json, not {kind}"]
    )


async def test_a_body_without_a_type_is_taken_as_json(client: Client) -> None:
    """`ch-remote` names none."""
    answer = await client.put("vm.tune-migration", {"downtime_ms": 1})
    assert answer.json == ["there is no migration"]


async def test_over_tcp_as_well(service: Service) -> None:
    with open_tcp("tcp:127.0.0.1:0") as listener:
        async with serve(service, listener, insecure=True):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
            assert (await read_answer(reader)).status == 403
            writer.close()
            await writer.wait_closed()
