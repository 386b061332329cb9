"""examples/tiny_vmm as two processes between which a guest goes to and fro."""

import asyncio
import sys
from pathlib import Path

import pytest

from aiomigrate.tiny_vmm.userfaultfd import why_unusable
from tests.support.terminal import GUEST, PASS, Terminal
from tests.support.tiny import check


@pytest.mark.parametrize("connections", [1, 2, 8])
async def test_ten_times_there_and_back(connections: int) -> None:
    """The counter goes on without a gap, and no page is missed."""
    counted: list[str] = []
    async with (
        Terminal(*GUEST) as here,
        Terminal("receive", "tcp:127.0.0.1:0") as there,
    ):
        begin = {here: 0, there: 0}
        await here.expect(r"\| ", count=2 * PASS)
        for trip in range(20):
            if trip:
                there.type("receive tcp:127.0.0.1:0")
            heard = await there.expect("listening on (.*)", begin[there])
            here.type(f"send {heard[1]} {connections}")
            await here.expect("sent: .* the destination has the guest", begin[here])
            counted += here.serial(begin[here])
            begin[here] = len(here.lines)
            await there.expect("received: the guest runs here", begin[there])
            await there.expect(r"\| ", begin[there], count=PASS + 1)
            here, there = there, here  # noqa: PLW2901
        here.type("off")
        await here.expect("the guest has ended: off", begin[here])
        counted += here.serial(begin[here])
        for terminal in (here, there):
            await terminal.end()
    check(counted)


async def _offload(*arguments: str | Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiomigrate.cli", "offload", *arguments, "--progress", "json"),
        stdout=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "command",
    [
        "receive",
        pytest.param(
            "restore", marks=pytest.mark.skipif(bool(why_unusable()), reason=why_unusable())
        ),
    ],
)
async def test_into_a_snapshot_and_out_of_it(tmp_path: Path, command: str) -> None:
    """By descriptor, with `aiomigrate offload`; `restore` is on demand."""
    stored, address = tmp_path / "stored", f"unix:{tmp_path}/socket"
    async with Terminal(*GUEST) as here:
        await here.expect(r"\| ", count=2 * PASS)
        taking = await _offload("snapshot", address, "--into", stored)
        assert taking.stdout is not None
        assert b"listening" in await taking.stdout.readline()
        here.type(f"local {address}")
        await here.expect("sent: 0.0 MiB .* the destination has the guest")
        counted = here.serial()
        await taking.communicate()
        assert taking.returncode == 0
        await here.end()
    async with Terminal(command, address) as there:
        await there.expect("listening on")
        how = ["--on-demand"] if command == "restore" else []
        giving = await _offload("restore", stored, address, "--resume", *how)
        await there.expect("re.*d: the guest runs here")
        await giving.communicate()
        assert giving.returncode == 0
        await there.expect(r"\| ", count=2 * PASS)
        there.type("off")
        await there.expect("the guest has ended: off")
        counted += there.serial()
        await there.end()
    check(counted)
