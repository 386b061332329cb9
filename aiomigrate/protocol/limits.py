"""What a peer may ask of us at the most."""

from dataclasses import dataclass

from aiomigrate.protocol.wire import RANGE_BYTES

__all__ = ["Limits"]

_KIB = 1 << 10
_MIB = 1 << 20
_GIB = 1 << 30
_PAGE_BYTES = 4096  # dirty granularity of every known peer, huge pages included


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds on everything a peer announces. All sizes in bytes."""

    max_connections: int = 128
    """Memory connections of one migration (Cloud Hypervisor's own limit)."""
    max_lane_numbers: int = 1 << 16
    """Lanes that ever were, or were retired unseen: none of their numbers is forgotten (4 MiB)."""
    max_strangers: int = 256
    """Connections that have not shown what they are: silent lanes of a v52 sender, port scans."""
    max_config_bytes: int = 4 * _MIB
    """Seen: 6 KiB for a small guest. It is parsed on the event loop: 60 ms a MiB at the worst."""
    max_first_table_bytes: int = 1 * _MIB
    """The first table of a connection that has not shown yet that it belongs: 64 Ki ranges. Chunks
    of 64 MiB, as stock senders make, have tables of 256 KiB at the most."""
    max_state_bytes: int = 1 * _GIB
    """A guest's is some 100 KiB; VFIO devices put theirs in as base64, tens of MiB each."""
    max_drained_bytes: int = 64 * _KIB
    """A payload where none belongs is read up to this before it is refused."""
    max_page_bytes: int = 1 * _GIB
    """The longest page a fault may ask for (Cloud Hypervisor's own limit)."""

    def max_table_bytes(self, ram_bytes: int) -> int:
        """The longest range table of one Memory for a guest of `ram_bytes`.

        A stock sender with one connection puts all dirt into one table, and its last one holds
        the fresh dirty log followed by the log before it: each page twice at the most.
        """
        return RANGE_BYTES * (2 * (ram_bytes // _PAGE_BYTES) + 2)
