"""Two services of tiny VMs (examples/tiny_vmm/serve.py) as real processes: a guest moves from one
to the other.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import requests

__all__ = ["FOREVER", "Pair", "Served", "pair"]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
_ANY = "tcp:127.0.0.1:0"
_GUEST = (8 << 20, 64)
"""Its memory in bytes, and pages that it writes a tick: up to 25 MiB/s."""
FOREVER = {"downtime_ms": 1, "rate_limit": 8 << 20, "throttle_cap_percent": 0, "timeout_s": 3600}
"""A migration that does not end by itself: the guest writes faster than memory may move."""


class Served:
    """One process."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "examples.tiny_vmm.serve", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    @cached_property
    def url(self) -> str:
        """Its service's, once it listens."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()[-1].rstrip("/")

    @property
    def port(self) -> str:
        """Where it listens."""
        return self.url.rpartition(":")[2]

    def get(self, path: str) -> Any:
        """What it answers; None if it is not there."""
        answer = requests.get(f"{self.url}/api/v1/{path}", timeout=PATIENCE_S)
        return answer.json() if answer.ok else None

    def put(self, path: str, **body: Any) -> requests.Response:
        """Ask for a change."""
        url = f"{self.url}/api/v1/{path}"
        return requests.put(url, json=body or None, timeout=PATIENCE_S)

    def close(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Pair:
    """A service with a guest, and one with a place for it."""

    def __init__(self, source: Served, destination: Served) -> None:
        self.source = source
        self.destination = destination

    def settle(self) -> None:
        """Nothing moves, and the source is the one with the guest, wherever it is."""
        if (newest := self.source.get("vm.migration")) and newest["ended"] is None:
            self.source.put("vm.cancel-migration")
        while (received := self.destination.get("vm.migration")) and received["ended"] is None:
            time.sleep(0.02)
        if self.source.get("vm.info") is None:
            self.source, self.destination = self.destination, self.source

    def send(self, **options: Any) -> dict[str, Any]:
        """Begin to move the guest: the source's migration, which runs."""
        waiting = self.receive()
        sent = self.source.put("vm.send-migration", destination_url=waiting["url"], **options)
        assert sent.status_code == 204, sent.text
        found: dict[str, Any] = self.source.get("vm.migration")
        return found

    def receive(self) -> dict[str, Any]:
        """Have the destination wait for the guest: its migration, which does."""
        threading.Thread(target=self._receive, daemon=True).start()
        while not (waiting := self.destination.get("vm.migration")) or waiting["ended"]:
            time.sleep(0.02)  # what another process does can only be polled
        found: dict[str, Any] = waiting
        return found

    def _receive(self) -> None:
        with suppress(requests.ConnectionError):  # its process may end before the migration
            self.destination.put("vm.receive-migration", receiver_url="tcp:127.0.0.1:0")


@contextmanager
def pair(size: int = _GUEST[0], batch: int = _GUEST[1]) -> Iterator[Pair]:
    """Two that run; what is left of them at the end is killed."""
    with ExitStack() as stack:
        processes = [Served(_ANY, "boot", str(size), str(batch)), Served(_ANY)]
        for process in processes:
            stack.callback(process.close)
        yield Pair(*processes)
