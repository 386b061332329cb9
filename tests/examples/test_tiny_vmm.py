"""examples/tiny_vmm as two processes between which a guest goes to and fro."""

import pytest

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
