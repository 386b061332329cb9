"""The fault connection's cores, for post-copy (Cloud Hypervisor v53 on).

The source opens the connection with role Fault; the destination then asks for the pages it
misses. An answer's content goes past the core: the driver moves it.
"""

from collections import deque
from dataclasses import dataclass

from aiomigrate.protocol.limits import Limits
from aiomigrate.protocol.machine import RequestReceiver, RequestSender
from aiomigrate.protocol.tables import DESTINATION_FAULT, SOURCE_FAULT, FaultState, Signal
from aiomigrate.protocol.wire import (
    RANGE_BYTES,
    RESPONSE_BYTES,
    Command,
    Response,
    Role,
    Status,
    decode_range,
    encode_range,
    encode_role,
)

__all__ = ["FaultDestination", "FaultSource", "PageAnswered", "PageRequested", "ServingEnded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequested:
    """The destination misses `length` bytes at guest physical address `gpa`."""

    gpa: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEnded:
    """The destination sent Abandon on its fault connection; answer it and close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageAnswered:
    """The oldest unanswered fault is served: `length` bytes of content follow.

    0 for shared memory, where the source wrote the page into the memfd.
    """

    gpa: int
    length: int


class FaultSource(RequestReceiver[FaultState]):
    """The side that has the pages: reads PageFault requests and answers them."""

    def __init__(self, limits: Limits, name: str = "fault") -> None:
        super().__init__(
            name,
            SOURCE_FAULT,
            FaultState.CONNECTED,
            FaultState.FAILED,
            limits.max_drained_bytes,
        )
        self._max_page = limits.max_page_bytes
        self._page = 0

    def open(self) -> bytes:
        """The role that the connection begins with."""
        self._move_locally(Signal.ROLE)
        return encode_role(Role.FAULT)

    def _expected_length(self, command: Command, length: int) -> str | None:
        wanted = RANGE_BYTES if command is Command.PAGE_FAULT else 0
        return None if length == wanted else f"{wanted} bytes"

    def receive_data(
        self, data: bytes | bytearray | memoryview
    ) -> PageRequested | ServingEnded | None:
        """Take up to `wanted` bytes; RemoteProtocolError for a page of 0 or over the limit."""
        taken = self._take(data)
        if taken is None:
            return None
        if taken[0].command == Command.ABANDON:
            return ServingEnded()
        gpa, length = decode_range(taken[1])
        if not 0 < length <= self._max_page:
            expected = f"a page of 1 to {self._max_page} bytes"
            self._refuse("PageFault", expected, f"{length}", answer=True)
        self._page = length
        return PageRequested(gpa=gpa, length=length)

    def page(self, length: int) -> bytes:
        """The response before `length` bytes of content (0: the page is in the memfd).

        LocalProtocolError for a length that is neither 0 nor the page's.
        """
        asked = self._page if self.state is FaultState.ANSWERING else 0
        if length not in (0, asked):
            self._misused("PageFault", f"0 or {asked} bytes", f"{length}")
        self.answer(ok=True)
        return Response(Status.OK, length).encode()


class FaultDestination(RequestSender[FaultState]):
    """The side that misses pages: writes PageFault requests, any number unanswered."""

    _content_follows = True

    def __init__(self, name: str = "fault") -> None:
        super().__init__(name, DESTINATION_FAULT, FaultState.CONNECTED, FaultState.FAILED)
        self._asked: deque[tuple[int, int]] = deque()

    def opened(self) -> None:
        """The peer's role Fault has been read."""
        self._move_locally(Signal.ROLE)

    def page_fault(self, gpa: int, length: int) -> bytes:
        """Ask for the page of `length` bytes at `gpa`: 32 bytes to write."""
        payload = encode_range(gpa, length)
        header = self._request(Command.PAGE_FAULT, RANGE_BYTES)
        self._asked.append((gpa, length))
        return header + payload

    def receive_response(self, data: bytes | bytearray | memoryview) -> PageAnswered:
        """Take one whole response of 16 bytes; its content is the driver's to read.

        RemoteProtocolError for an Error, or a length that is neither 0 nor the page's.
        """
        if self._over or len(data) != RESPONSE_BYTES:
            expected = "no response" if self._over else f"{RESPONSE_BYTES} bytes"
            self._misused(None, expected, f"{len(data)}")
        (answer,) = self.receive_data(data)
        gpa, asked = self._asked.popleft()
        if not answer.ok:
            self._refuse("PageFault", "the page", "Error")
        if answer.length not in (0, asked):
            self._refuse("PageFault", f"0 or {asked} bytes", f"{answer.length}")
        return PageAnswered(gpa=gpa, length=answer.length)

    def close(self) -> None:
        """All pages are here: the end of this stream tells the source so.

        LocalProtocolError while answers are due: the source would take their pages for served.
        """
        self._require_answers(None)
        self._move_locally(Signal.CLOSE)
