"""A connection of a destination that carries memory, and where in its stream of requests it is."""

import asyncio

from aiomigrate.protocol import DestinationLane, LaneState
from aiomigrate.transport import Connection

__all__ = ["ArrivedLane"]


class ArrivedLane:
    """A connection that said it is a lane; `joined` once it was found to be the migration's."""

    def __init__(
        self,
        connection: Connection,
        core: DestinationLane,
        task: asyncio.Task[None],
        number: int | None = None,
    ) -> None:
        self.connection = connection
        self.core = core
        self.task = task
        """What serves it."""
        self.number = number
        """As its Join says; None for a plain peer's."""
        self.joined = False
        self.settled = connection.received
        """Bytes received when its last request was done with: more than that are of the next."""

    @property
    def label(self) -> str:
        """As progress shows it."""
        return self.core.name if self.number is None else f"lane {self.number}"

    @property
    def quiet(self) -> bool:
        """Whether nothing was begun on it, and nothing waits in its socket.

        A stranger that was refused and has not gone yet is none of the migration's business.
        """
        if self.core.state is LaneState.FAILED:
            return not self.joined
        return not self.begun and not self.connection.unread()

    @property
    def begun(self) -> bool:
        """Whether a request has begun that is not answered."""
        return not self.core.between_requests or self.connection.received != self.settled
