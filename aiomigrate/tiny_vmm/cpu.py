"""What the VMM asks of a CPU, whether KVM runs it or a thread of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Cpu", "Exit"]


@dataclass(frozen=True, slots=True)
class Exit:
    """Why the guest stopped: it reads or writes an I/O port, or halts (port None)."""

    port: int | None
    data: bytes | None = None
    """What it writes, or None if it reads."""


class Cpu(Protocol):
    """A CPU. One thread runs it; `interrupt` is for others, the rest for while it does not run."""

    def run(self) -> Exit | None:
        """Run the guest until it needs something, or None if it was interrupted: only then has
        its last instruction ended, so that its registers can be read.
        """
        ...

    def answer(self, value: int) -> None:
        """What the guest reads from the port that it stopped for."""
        ...

    def interrupt(self) -> None:
        """Make `run` return None soon, and every further time until `rearm`."""
        ...

    def rearm(self) -> None:
        """Let the guest run again. For the thread that runs it."""
        ...

    def reset(self) -> None:
        """As it is when the machine begins."""
        ...

    def capture(self) -> dict[str, Any]:
        """Its registers, as JSON has it."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from captured registers."""
        ...

    def close(self) -> None:
        """End it, and let go of guest memory."""
        ...
