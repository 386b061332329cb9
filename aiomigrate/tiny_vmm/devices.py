"""What is at the guest's I/O ports: a serial line, a device that writes memory, a power button.

All are used by the CPU's thread; a device's own state travels with the VM.
"""

from __future__ import annotations

from typing import Protocol

from aiomigrate.tiny_vmm.guest import stamp
from aiomigrate.tiny_vmm.ram import Ram

__all__ = ["Dma", "Output", "Serial"]


class Output(Protocol):
    """Where the serial line ends, line by line: sys.stdout, for example."""

    def write(self, text: str, /) -> object:
        """Take a line with its end."""
        ...


class Serial:
    """A serial port, of which only output is there."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._muted = False
        self.line = ""
        """What was written since the last end of a line."""

    def mute(self) -> None:
        """Nothing more is heard."""
        self._muted = True

    def write(self, data: bytes) -> None:
        """What the guest writes."""
        if self._muted:
            return
        self.line += data.decode("ascii")
        *lines, self.line = self.line.split("\n")
        for line in lines:
            self._output.write(f"{line}\n")


class Dma:
    """Stamps pages that the guest names. Like a disk it has a queue, of one request: it carries a
    request out when the next one comes, and at the latest when the machine is captured.
    """

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self.number = 0
        """What it stamps with."""
        self._request: tuple[int, int] | None = None

    def request(self, page: int) -> None:
        """Have the page at this address stamped with the number as it is now."""
        self.drain()
        self._request = self.number, page

    def drain(self) -> None:
        """Carry out what was asked for: this writes guest memory."""
        if self._request is not None:
            for address, data in stamp(*self._request):
                self._ram.write(address, data)
            self._request = None
