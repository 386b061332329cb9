"""How a person comes to the page of `aiomigrate serve`, and how other pages do not."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.conftest import Process, make_vm
from tests.web.browser import REBOUND, Browser


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The port of a service with one stored VM, which listens at `api.sock` as well."""
    (tmp_path / "vms").mkdir()
    make_vm(tmp_path / "vms" / "web-1")
    where = ["--api-socket", f"{tmp_path}/api.sock", "--vms", f"{tmp_path}/vms"]
    with Process("serve", *where, "--listen", "tcp:127.0.0.1:0", "--insecure") as process:
        process.address()
        yield process.address().rpartition(":")[2]


@contextmanager
def forwarded(path: Path) -> Iterator[str]:
    """A port that leads to a unix socket, as `ssh -L` opens one."""
    command = [sys.executable, "-m", "aiomigrate.testing", "tcp:127.0.0.1:0", f"unix:{path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().partition(": relays")[0].rpartition(":")[2]
        finally:
            process.kill()


@contextmanager
def another_site(directory: Path) -> Iterator[str]:
    """An empty page of somebody else's."""
    (directory / "index.html").write_text("<!doctype html><title>theirs</title>")
    handler = partial(_Quiet, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            serving.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def test_by_a_port_of_this_host_and_through_one_that_is_forwarded(
    browser: Browser, served: str, tmp_path: Path
) -> None:
    with forwarded(tmp_path / "api.sock") as port:
        for host in (f"localhost:{served}", f"127.0.0.1:{served}", f"localhost:{port}"):
            browser.open(f"http://{host}/")
            browser.until(lambda: browser.text("#link") == "live")
            browser.until(lambda: browser.find("#none").is_displayed())
            assert browser.asked() == {f"http://{host}"}
            assert browser.complaints() == []
            browser.driver.find_element("link text", "API reference").click()
            browser.until(lambda: "vm.send-migration" in browser.text("body"))
            assert browser.complaints() == []


def test_not_by_a_name_that_was_led_here(browser: Browser, served: str) -> None:
    browser.open(f"http://{REBOUND}:{served}/")
    assert f"this service is not called '{REBOUND}:{served}'" in browser.text("body")


ATTACKS = """
const [url, done] = arguments;
const outcome = (promise) => promise.then(() => "went", () => "refused");
const heard = new Promise((resolve, reject) => {
  const source = new EventSource(`${url}/events`);
  source.onopen = resolve;
  source.onerror = () => { source.close(); reject(); };
});
const loaded = new Promise((resolve, reject) => {
  const script = document.createElement("script");
  script.onload = resolve;
  script.onerror = reject;
  script.src = `${url}/api/v1/vm.migrations`;
  document.head.append(script);
});
Promise.all([
  outcome(fetch(`${url}/api/v1/vm.cancel-migration`, { method: "PUT" })),
  outcome(fetch(`${url}/api/v1/vm.migrations`)),
  outcome(heard),
  outcome(loaded),
]).then(done);
"""


def test_not_from_the_page_of_somebody_else(browser: Browser, served: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    with another_site(tmp_path / "theirs") as url:
        browser.open(url)
        tried = browser.driver.execute_async_script(ATTACKS, f"http://localhost:{served}")
        assert tried == ["refused"] * 4
