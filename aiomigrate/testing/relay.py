"""A relay between two peers that does to their connections what a network or a dying peer does.

It listens, connects to the target for each connection that it accepts, and moves bytes both ways.
Of itself it changes nothing: an end of stream goes through as one (what is half-closed stays so), a
reset as a reset, and a reader that is slow slows its writer. `faults` say what goes wrong; a test
waits for that with `struck`, and ends what is held with `release`.

It ends TCP on both sides: what TCP itself does on a long or a broken path is shown by a `Link`.
"""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, final

from aiomigrate.testing.faults import Fault, Hold
from aiomigrate.testing.relayed import Relayed
from aiomigrate.testing.strikes import Strikes, Struck
from aiomigrate.transport import Listener, listen, parse_address

__all__ = ["FaultRelay"]


@final
class FaultRelay:
    """Relays what connects to `address` on to `target`, with `faults`. An async context manager.

    `target` and `listen` are `tcp:host:port` or `unix:path`; `seed` decides about jitter.
    `AddressError` for an address that is none, `ListenFailed` on entering. Leaving closes every
    connection. Times are the running loop's.
    """

    def __init__(
        self,
        target: str,
        *,
        faults: Iterable[Fault] = (),
        listen: str = "tcp:127.0.0.1:0",
        seed: int = 0,
    ) -> None:
        self._target = parse_address(target)
        self._listen = parse_address(listen, listening=True)
        self._faults = tuple(faults)
        self._seed = seed
        self._strikes = Strikes()
        self._stack = AsyncExitStack()
        self._accepted = asyncio.Condition()
        self.address = ""
        """Where it listens, with the real port, once the context has been entered."""
        self.connections: list[Relayed] = []
        """All that were accepted, in that order."""

    def __repr__(self) -> str:
        return f"<FaultRelay {self.address or self._listen} to {self._target}>"

    async def __aenter__(self) -> Self:
        listener = await listen(self._listen)
        self._stack.callback(listener.close)
        self.address = str(listener.address)
        # Left without the error of the body, which a group would wrap.
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._serving = group.create_task(self._serve(listener))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._serving.cancel()
        await self._stack.aclose()

    @property
    def strikes(self) -> tuple[Struck, ...]:
        """Every fault that has struck, in order."""
        return tuple(self._strikes.all)

    async def struck(self, connection: int, fault: Fault | None = None) -> Struck:
        """Wait, without limit, until `fault` (None: any) has struck on `connection`."""
        return await self._strikes.wait(connection, fault)

    def release(self, connection: int | None = None) -> None:
        """Let go what `Stall` and `Hold` hold now, on `connection` or (None) on all."""
        self._strikes.release(connection)

    def cut_all(self) -> None:
        """Let both ends of every connection read an end of stream; new ones are still taken."""
        for relayed in self.connections:
            relayed.cut()

    async def _serve(self, listener: Listener) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    index = len(self.connections)
                    faults = [fault for fault in self._faults if fault.aims_at(index)]
                    for fault in faults:
                        if isinstance(fault, Hold):
                            await self._strikes.hold(Struck(fault, index))
                    near = await listener.accept_socket()
                    relayed = Relayed(index, near, self._strikes)
                    self.connections.append(relayed)
                    async with self._accepted:
                        self._accepted.notify_all()
                    group.create_task(relayed.run(self._target, faults, self._seed, self._reached))
        finally:
            # Also those whose task was cancelled before it began.
            for relayed in self.connections:
                relayed.close()

    async def _reached(self, index: int) -> None:
        """Wait until connection `index` has reached the target, or never will."""
        async with self._accepted:
            await self._accepted.wait_for(lambda: index < len(self.connections))
        await self.connections[index].reached.wait()
