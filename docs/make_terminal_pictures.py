"""Make the pictures of the terminal in docs/pictures/: `make pictures`.

The real program runs in tmux, and its screen is drawn as SVG. Needs tmux; takes about a minute. The
pictures refer to no other host: letters are drawn in whatever monospaced font there is.
"""  # noqa: INP001 - a script beside the documents, no package

import asyncio
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
from rich.console import Console
from rich.text import Text

__all__ = ["Screen", "draw"]

PICTURES = Path(__file__).parent / "pictures"
MIB = 1 << 20
_PATIENCE_S = 120.0
"""For a screen to show what it is to show: kernels may have to be compiled."""
_COLUMNS = 96
_PROGRAM = (sys.executable, "-m", "aiomigrate.cli")
_RECEIVE = ("receive", "tcp:127.0.0.1:0", "--progress", "json", "--into")
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
    font-size: {char_height}px; line-height: {line_height}px;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""As rich's own, but for the fonts, which that loads from a host of others."""


class Screen:
    """A terminal in which one command line runs. A context manager."""

    def __init__(self, command: str, rows: int, cwd: Path, columns: int = _COLUMNS) -> None:
        self._command = command
        self._size = columns, rows
        self._cwd = cwd

    def __enter__(self) -> Self:
        columns, rows = self._size
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shell = shlex.join(["env", "PS1=$ ", f"PATH={path}", "bash", "--norc"])
        self._socket = str(self._cwd / f"tmux-{time.monotonic_ns()}")
        size = ("-x", str(columns), "-y", str(rows))
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(self._cwd), shell)
        self.until(r"\$")
        self.type(self._command)
        return self

    def type(self, command: str) -> None:
        """A line of input."""
        self._tmux("send-keys", command, "Enter")

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", self._socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def until(self, pattern: str) -> str:
        """The screen, with its colours as escapes, once it shows what matches."""
        ends, plain = time.monotonic() + _PATIENCE_S, ""
        while time.monotonic() < ends:
            screen = self._tmux("capture-pane", "-p", "-e")
            plain = Text.from_ansi(screen).plain
            if re.search(pattern, plain, re.DOTALL):
                return screen
            time.sleep(0.05)
        raise SystemExit(f"{self._command}: never showed {pattern!r}:\n{plain}")


def draw(screen: str, title: str, columns: int = _COLUMNS) -> str:
    """A screen as SVG."""
    lines = screen.rstrip().splitlines()
    while lines and not Text.from_ansi(lines[-1]).plain.strip(" $"):
        lines.pop()
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop", highlight=False)
    name = re.sub(r"\W+", "-", title)
    return console.export_svg(title=title, code_format=_SVG, unique_id=f"terminal-{name}")


def _store_vm(directory: Path, size: int) -> None:
    """A stored VM whose memory is half random data, half zeros."""
    directory.mkdir()
    mapping = {
        "slot": 0, "gpa": 0, "size": size,
        "zone_id": "mem0", "virtio_mem": False, "file_offset": 0,
    }  # fmt: skip
    config = {"memory_manager_data": {"guest_ram_mappings": [mapping]}}
    (directory / "migration_config.json").write_text(json.dumps(config))
    (directory / "state.json").write_text("{}")
    with (directory / "memory-0").open("xb") as memory:
        memory.write(random.Random(7).randbytes(size // 2))  # noqa: S311 (no secret)
        memory.truncate(size)


@contextmanager
def _running(*arguments: str, cwd: Path) -> Iterator[dict[str, Any]]:
    """A command in the background: its first JSON line."""
    command = [*_PROGRAM, *arguments]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None  # noqa: S101 (PIPE was asked for)
            yield json.loads(process.stdout.readline() or "{}")
        finally:
            process.terminate()
            process.communicate()


def _demos(place: Path) -> Iterator[tuple[str, str]]:
    with Screen("aiomigrate demo --size 256MiB --rate-limit 100MiB", 40, place) as screen:
        yield (
            "demo-running",
            screen.until(r"[5-9]\d%.*destination.*[4-9]\d%.*lane 4 . [\d.]+ .iB/s"),
        )
        yield "demo-finished", screen.until("as they were left")
    with Screen("aiomigrate demo --size 64MiB --rate-limit 16MiB", 40, place) as screen:
        yield "demo-not-converging", screen.until("does not converge.*help.*destination.*lane 4 . ")
    moved = place / "moved.json"
    demo = ("demo", "--size", "256MiB", "--rate-limit", "100MiB", "--json")
    with moved.open("wb") as file:
        subprocess.run([*_PROGRAM, *demo], check=True, stdout=file)
    with Screen("aiomigrate report moved.json", 60, place) as screen:
        yield "report", screen.until(r"Speed was limited.*\n\$")


def _send(place: Path) -> Iterator[tuple[str, str]]:
    with _running(*_RECEIVE, "copy-1", cwd=place) as told:
        address = told["address"]
        with Screen(
            f"aiomigrate send web-1 {address} --connections 8 --rate-limit 80MiB", 20, place
        ) as screen:
            yield "send", screen.until(r"[5-9]\d%.*lane 8 . [\d.]+ .iB/s")
            screen.until("Speed was limited")


def _watch(place: Path) -> Iterator[tuple[str, str]]:
    with (
        _running(*_RECEIVE, "copy-2", cwd=place) as told,
        Screen("aiomigrate serve --api-socket api.sock --vms vms &>serve.log &", 20, place) as one,
    ):
        asking = [*_PROGRAM, "ps", "--api-socket", "api.sock"]
        while subprocess.run(asking, check=False, cwd=place, capture_output=True).returncode:
            time.sleep(0.05)
        wanted = {"connections": 4, "rate_limit": 30 * MIB, "destination_url": told["address"]}
        asyncio.run(_ask(place / "api.sock", "vm.send-migration?vm=web-2", wanted))
        one.type("clear")
        one.type("aiomigrate watch --api-socket api.sock --vm web-2")
        yield "watch", one.until(r"[5-9]\d%.*lane 4 . [\d.]+ .iB/s")
        one.until("Speed was limited")


async def _ask(socket: Path, what: str, body: dict[str, Any]) -> None:
    connector = aiohttp.UnixConnector(str(socket))
    async with (
        aiohttp.ClientSession(connector=connector, raise_for_status=True) as session,
        session.put(f"http://service/api/v1/{what}", json=body),
    ):
        pass


def main() -> None:
    """Make all of them."""
    if shutil.which("tmux") is None:
        raise SystemExit("tmux is needed: apt-get install tmux")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "vms").mkdir()
        _store_vm(place / "web-1", 256 * MIB)
        _store_vm(place / "vms" / "web-2", 256 * MIB)
        for scene in (_demos, _send, _watch):
            for name, screen in scene(place):
                (PICTURES / f"{name}.svg").write_text(draw(screen, f"aiomigrate: {name}"))
                print(PICTURES / f"{name}.svg", flush=True)


if __name__ == "__main__":
    main()
