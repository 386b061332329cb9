"""examples/controller as two processes, which fetch a guest from each other."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.support.terminal import PASS
from tests.support.tiny import check

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60


@pytest.fixture
def controllers() -> Iterator[list[str]]:
    """Their URLs; both end well."""
    with ExitStack() as stack:
        processes = []
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-m", "examples.controller", "0"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield [process.stdout.readline().split()[-1] for process in processes if process.stdout]
        for process in processes:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE_S) == 0


def get(url: str) -> str:
    found = requests.get(url, timeout=PATIENCE_S)
    assert found.ok
    return found.text


def ask(method: str, url: str, body: str = "") -> tuple[int, str]:
    answer = requests.request(method, url, data=body, timeout=PATIENCE_S)
    return answer.status_code, answer.text


def wait_for_lines(url: str, count: int) -> list[str]:
    while len(lines := get(f"{url}/console").splitlines()) < count:
        pass
    return lines


def test_there_and_back(controllers: list[str]) -> None:
    """The guest counts on without a gap, and looks at each of its pages at each place."""
    here, there = controllers
    written = dict.fromkeys(controllers, 0)
    counted: list[str] = []
    assert ask("PUT", f"{here}/vms/a") == (201, "")
    for _ in range(3):
        wait_for_lines(here, written[here] + 2 * PASS)
        status, report = ask("POST", f"{there}/vms/a/fetch", here)
        assert (status, json.loads(report).keys()) == (200, {"bytes"})
        assert (get(f"{here}/vms"), get(f"{there}/vms")) == ("[]", '["a"]')
        lines = wait_for_lines(here, 0)
        counted += lines[written[here] :]
        written[here] = len(lines)
        here, there = there, here
    counted += wait_for_lines(here, written[here] + 2 * PASS)[written[here] :]
    check(counted)


def test_what_cannot_be(controllers: list[str]) -> None:
    """The guest stays where it is, and nothing is left elsewhere."""
    here, there = controllers
    assert ask("PUT", f"{here}/vms/a") == (201, "")
    for method, url, body, expected, why in (
        ("PUT", f"{here}/vms/a", "", 409, "a: not there, there already, or moving"),
        ("POST", f"{there}/vms/b/fetch", here, 502, "b: not there, "),
        ("POST", f"{there}/vms/a/fetch", "http://127.0.0.1:1", 502, "Cannot connect to host"),
        ("POST", f"{there}/vms/a/fetch", "nonsense", 502, "nonsense"),
        ("POST", f"{here}/vms/a/send", "tcp:127.0.0.1:1", 502, "the VM is with the source"),
        ("POST", f"{here}/vms/a/send", "nonsense", 502, "nonsense"),
    ):
        status, text = ask(method, url, body)
        assert status == expected
        assert why in text
    assert (get(f"{here}/vms"), get(f"{there}/vms")) == ('["a"]', "[]")
    wait_for_lines(here, len(wait_for_lines(here, 0)) + PASS)


def test_it_is_short() -> None:
    text = (ROOT / "examples" / "controller" / "__main__.py").read_text()
    assert len(text.splitlines()) < 100
