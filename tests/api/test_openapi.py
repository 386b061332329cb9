"""The OpenAPI document, the page made of it, and schemathesis against a service that runs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from aiomigrate.api import Service, http
from aiomigrate.api.openapi import CLOUD_HYPERVISORS, make_document
from aiomigrate.api.operations import OPERATIONS
from aiomigrate.api.reference import make_reference
from tests.api.conftest import Client
from tests.cli.conftest import Process, make_vm

DOCUMENT = make_document()


def bodies() -> dict[str, dict[str, Any]]:
    """The schema of each request body, by the operation's name."""
    schemas = DOCUMENT["components"]["schemas"]
    return {op.name: schemas[op.body.__name__] for op in OPERATIONS if op.body is not None}


async def test_it_is_served(client: Client) -> None:
    answer = await client.get("/openapi.json")
    assert (answer.status, answer.header("Content-Type")) == (200, "application/json")
    assert answer.json == DOCUMENT


def test_every_path_that_is_served_is_in_it(service: Service) -> None:
    """So schemathesis tries each of them; the page's own files are no part of the API."""
    served = {
        (route.method, route.resource.canonical)
        for route in http._application(service).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert served == described | {("GET", "/assets/{name}")}


def test_every_parameter_is_described() -> None:
    for name, schema in bodies().items():
        for field, details in schema["properties"].items():
            assert details.get("description"), f"{name}: {field}"
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            for parameter in operation.get("parameters", ()):
                assert parameter["description"], path


def test_every_field_of_an_answer_that_says_more_than_its_name_is_described() -> None:
    progress = DOCUMENT["components"]["schemas"]["Progress"]["properties"]
    assert progress["ranges"]["description"]
    assert progress["fraction"]["description"].startswith("Of the whole work, done")


def test_connections() -> None:
    schema = bodies()["vm.send-migration"]["properties"]["connections"]
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (1, 128, 1)


def test_no_other_field_is_allowed() -> None:
    assert {schema["additionalProperties"] for schema in bodies().values()} == {False}


def test_only_cloud_hypervisors_own_operations_answer_500() -> None:
    for operation in OPERATIONS:
        responses = DOCUMENT["paths"][operation.path][operation.method.lower()]["responses"]
        if not operation.failing:
            assert "500" not in responses
        elif operation.name != "vmm.ping":
            schema = responses["500"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Refused"}


async def test_the_reference(client: Client) -> None:
    answer = await client.get("/reference")
    assert (answer.status, answer.header("Content-Type")) == (200, "text/html; charset=utf-8")
    page = answer.body.decode()
    assert page == make_reference(DOCUMENT)
    assert re.search(r"src=|<link|<script|@import|url\(", page) is None, "it needs no other file"
    assert re.findall(r"href='(.*?)'", page) == [".", "openapi.json"]
    for operation in OPERATIONS:
        assert operation.path in page
        assert operation.summary in page
    for schema in bodies().values():
        for field in schema["properties"]:
            assert f"<code>{field}</code>" in page


# A service in a process of its own, asked by schemathesis over tcp.

# Where a request would wait, or reach beyond the test, it is led to where nobody is.
HOOKS = """
import os
import schemathesis

INSTEAD = {
    "destination_url": os.environ["NOBODY"],
    "receiver_url": os.environ["NOBODY"],
    "source_url": os.environ["NOWHERE"],
}

@schemathesis.hook
def before_call(context, case, kwargs):
    if isinstance(case.body, dict):
        snapshot = case.path.endswith("vm.snapshot")
        for name, instead in INSTEAD.items():
            if isinstance(case.body.get(name), str):
                case.body[name] = os.environ["NOWHERE"] if snapshot else instead
"""


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """The URL of a service that has a VM. It logs no error."""
    vm = make_vm(tmp_path / "web-1")
    (tmp_path / "journal").mkdir()
    where = ["--api-socket", f"{tmp_path}/api.sock", "--vms", f"{tmp_path}"]
    tcp = ["--listen", "tcp:127.0.0.1:0", "--insecure"]
    with Process("serve", *where, *tcp, "--journal", f"{tmp_path}/journal") as process:
        assert process.address() == f"unix:{tmp_path}/api.sock"
        base = f"http://{process.address().removeprefix('tcp:')}"
        body = {"source_url": f"file://{vm}"}
        restored = requests.put(f"{base}/api/v1/vm.restore", json=body, timeout=30)
        assert restored.status_code == 204, restored.text
        yield base
        process.signal(signal.SIGTERM)
        status, _, log = process.end()
        assert status == 0
        levels = {json.loads(line)["level"] for line in log.splitlines() if line.startswith("{")}
        assert levels <= {"info", "warning"}, log


def check(base: str, tmp_path: Path, *options: str) -> None:
    """Run schemathesis; AssertionError with what it says if it finds something."""
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    with socket.socket() as nobody:  # bound, and nobody listens: nor can anybody else
        nobody.bind(("127.0.0.1", 0))
        environment = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": str(hooks),
            "NOBODY": f"tcp:127.0.0.1:{nobody.getsockname()[1]}",
            "NOWHERE": f"file://{tmp_path}/nowhere",
        }
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{base}/openapi.json", "--seed=1",
                "--max-examples=8", "--phases=examples,coverage,fuzzing", "--request-timeout=30",
                "--exclude-path=/events", "--warnings=off", *options,
            ],
            check=False, capture_output=True, text=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout, done.stdout


def test_our_operations(base: str, tmp_path: Path) -> None:
    """With all of its checks: no answer is a 500, nor one that the document does not name."""
    check(base, tmp_path, f"--exclude-tag={CLOUD_HYPERVISORS}")


def test_cloud_hypervisors_operations(base: str, tmp_path: Path) -> None:
    """Its status for what the VM's state does not allow is 500: in the document, and in a form that
    a failure of the service itself does not have. Nor does it know 405.
    """
    left_out = "--exclude-checks=not_a_server_error,unsupported_method"
    check(base, tmp_path, f"--include-tag={CLOUD_HYPERVISORS}", left_out)
