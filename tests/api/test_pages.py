"""The page and its files, as the service gives them."""

import re

import pytest

from aiomigrate import Phase
from aiomigrate.api.events import Event
from aiomigrate.api.migrations import State
from aiomigrate.web import ASSETS, PAGE, POLICY
from tests.api.conftest import Client

PARTS = re.findall(r'(?:src|href)="(assets/.*?)"', PAGE.text)


async def test_the_page_with_its_policy(client: Client) -> None:
    answer = await client.get("/")
    assert answer.status == 200
    assert answer.body == PAGE.content
    assert answer.header("Content-Type") == "text/html; charset=utf-8"
    assert answer.header("Content-Security-Policy") == POLICY
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("Cache-Control") == "no-cache"
    assert "unsafe" not in POLICY
    assert "'self'" in POLICY


def test_it_names_no_other_host_and_has_no_script_of_its_own() -> None:
    assert len(PARTS) == 5
    assert "<script>" not in PAGE.text
    assert "style=" not in PAGE.text
    for name, asset in ASSETS.items():
        if name.endswith((".js", ".css", ".html")) and not name.startswith("uPlot"):
            assert "http" not in asset.text.replace("http-equiv", ""), name
            assert "innerHTML" not in asset.text, name


@pytest.mark.parametrize("name", sorted(ASSETS))
async def test_each_file(client: Client, name: str) -> None:
    answer = await client.get(f"/assets/{name}")
    assert answer.status == 200
    assert answer.body == ASSETS[name].content
    etag = answer.header("ETag")
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        head = f"GET /assets/{name} HTTP/1.1\r\nHost: l\r\nIf-None-Match: {known}\r\n\r\n"
        again = await client.raw(head.encode())
        assert (again.status, again.body, again.header("ETag")) == (304, b"", etag)
    head = f'GET /assets/{name} HTTP/1.1\r\nHost: l\r\nIf-None-Match: "other"\r\n\r\n'
    assert (await client.raw(head.encode())).status == 200


def test_all_that_scripts_import_is_there() -> None:
    for asset in ASSETS.values():
        if asset.content_type.startswith("text/javascript"):
            for name in re.findall(r'from "\./(.*?)";', asset.text):
                assert name in ASSETS


def test_what_is_no_file_of_the_page_is_not_there() -> None:
    assert "vendor.json" not in ASSETS
    assert "__init__.py" not in ASSETS


async def test_a_file_that_there_is_not(client: Client) -> None:
    answer = await client.get("/assets/other.js")
    assert (answer.status, answer.json) == (404, ["there is no such file"])


def test_the_page_knows_all_words_of_the_service() -> None:
    """What it has no sentence for it would show raw, or not hear at all."""
    for event in Event:
        assert f'"{event}"' in ASSETS["service.js"].text, event
    for word in (*State, *Phase):
        assert re.search(rf"^  {word}: ", ASSETS["words.js"].text, re.MULTILINE), word


async def test_the_reference_has_a_policy_of_its_own(client: Client) -> None:
    policy = (await client.get("/reference")).header("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
