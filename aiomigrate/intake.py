"""What a source's requests bring into the VM that is being built: its configuration and memory.

Nothing is believed: a request is judged by what came before it, on any connection, and refused
before guest memory is touched. Which connections there are, and how a migration ends, is not known
here.
"""

from aiomigrate.applying import Applier
from aiomigrate.arrivals import Arrivals
from aiomigrate.arrived_lane import ArrivedLane
from aiomigrate.construction import Construction
from aiomigrate.executor import JobExecutor
from aiomigrate.memory.errors import ConfigError
from aiomigrate.memory.map import VmConfig
from aiomigrate.memory.spool import TableSpool
from aiomigrate.options import ReceiveOptions
from aiomigrate.passed_memory import PassedMemory
from aiomigrate.phase import Phase
from aiomigrate.progress import Tracker
from aiomigrate.protocol import RANGE_BYTES, MemoryReceived, ZerosReceived
from aiomigrate.requests import Refused
from aiomigrate.tasks import outlive
from aiomigrate.transport import Connection

__all__ = ["Intake"]


class Intake:
    """Configuration and memory of one `vm`. What it does not take is raised as `Refused`."""

    def __init__(
        self,
        vm: Construction,
        arrivals: Arrivals,
        tracker: Tracker,
        executor: JobExecutor,
        options: ReceiveOptions,
    ) -> None:
        self._vm = vm
        self._arrivals = arrivals
        self._tracker = tracker
        self._executor = executor
        self._options = options
        self._passed = PassedMemory()

    @property
    def memory_came(self) -> bool:
        """Whether any memory was named on any connection, zeros among it."""
        return bool(self._tracker.bytes_done or self._tracker.zero_bytes)

    def pass_memory(self, connection: Connection, slot: int) -> None:
        """Take the memory of a slot by the descriptor that came with the request."""
        if self._vm.takes_memory is None:
            raise Refused("memory by descriptor is not taken here")
        (fd,) = connection.take_descriptors(1)
        self._passed.add(slot, fd)

    async def configure(self, payload: bytes, data_bytes: int | None, source: str) -> None:
        """Have the VM's memory made as Config says, or built over what was given by descriptor.

        `data_bytes` of content are to come; None: it is not known.
        """
        try:
            config = VmConfig.parse(payload)
        except ConfigError as error:
            raise Refused(str(error)) from error
        self._tracker.total_bytes = config.memory_map.total_bytes
        taker = self._vm.takes_memory
        if self._passed and taker is not None:
            fds = await self._executor.run(self._passed.check, config.memory_map)
            await self._vm.adopt(taker, config, source, fds)
            await self._executor.run(self._passed.close)
            return
        await self._vm.configure(config, source, data_bytes)
        self._tracker.begin_iteration(0, config.memory_map.total_bytes)
        self._tracker.phase = Phase.PRECOPY

    async def apply(
        self,
        name: str,
        connection: Connection,
        event: MemoryReceived | ZerosReceived,
        lane: ArrivedLane | None = None,
    ) -> None:
        """Read the table of a Memory or Zeros whole, and then put its content where it belongs."""
        if self._vm.adopted:
            raise Refused("memory came that was given by descriptor already")
        memory = self._vm.memory
        if memory is None:
            raise Refused("memory came before the configuration was accepted")
        limit = self._options.limits.max_table_bytes(memory.map.total_bytes)
        if lane is not None and not lane.joined:
            limit = min(limit, self._options.limits.max_first_table_bytes)
        if event.table_bytes > limit:
            raise Refused(f"a range table of {event.table_bytes} bytes is over {limit}")
        applier = Applier(memory, self._executor, self._options.deadlines.pace)
        with memory.lease(), TableSpool() as spool:
            nbytes = await applier.read_table(connection, event.table_bytes, spool)
            if lane is not None and not lane.joined and not self._arrivals.join(lane):
                limit = self._options.limits.max_connections
                raise Refused(f"there are {limit} lanes already")
            if isinstance(event, MemoryReceived):
                await applier.read_content(connection, spool, nbytes)
                self._tracker.moved(name, nbytes, event.table_bytes // RANGE_BYTES)
                return
            # No content comes with zeros, so nothing else bounds the work of a short table.
            if nbytes > memory.map.total_bytes:
                raise Refused(f"zeros of {nbytes} bytes are more than the guest's memory")
            await applier.zero(spool)
            self._tracker.zeroed(nbytes)

    async def require_all(self) -> None:
        """State has come: Refused unless all memory has, and every lane is between requests."""
        if self._vm.adopted:  # nothing else would tell that the files are still empty
            await self._arrivals.catch_up()
        if self._arrivals.means_postcopy:
            raise Refused("the source means post-copy, and memory is to come before the state")
        if not (self._vm.adopted or self.memory_came):
            raise Refused("the state came before any memory: does the source mean post-copy?")
        for number, how in self._arrivals.broken.items():
            raise Refused(f"lane {number} was lost in the middle of a request: {how}")
        for lane in self._arrivals.lanes:
            if not lane.quiet:
                raise Refused(f"{lane.core.name} is in the middle of a request at State")

    async def close(self) -> None:
        """Let go of descriptors that became nobody's."""
        if self._passed:  # not of a VM that is ours: its were closed with Config
            await outlive(self._executor.run(self._passed.close))
