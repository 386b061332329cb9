"""What can go wrong with guest memory and stored VMs.

Every class keeps its facts as fields and builds its one-sentence text from them, so that an engine
can decide on the fields and a person can read the text.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DirtyLogError",
    "FramesError",
    "GuestMemoryBusyError",
    "GuestMemoryClaimedError",
    "ManifestError",
    "RangeError",
    "StoredVmError",
]


class ConfigError(ValueError):
    """A Config payload whose memory map cannot be used; `why` is the reason as half a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the Config cannot be used: {self.why}"


class DirtyLogError(Exception):
    """A dirty log that this kernel does not keep: `call` of `log` failed with `code`, an errno.

    `why` says what that means, and what is missing where that is known, as half a sentence.
    """

    def __init__(self, log: str, call: str, code: int, why: str) -> None:
        super().__init__(log, call, code, why)
        self.log = log
        self.call = call
        self.code = code
        self.why = why

    def __str__(self) -> str:
        return f"{self.log}: {self.call}: {self.why}"


class FramesError(ValueError):
    """A file of compressed memory that cannot be read; `why` is the reason as half a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the compressed memory cannot be used: {self.why}"


class RangeError(ValueError):
    """A range table that does not fit the memory map.

    `index` is the place of the first bad range in its table, `gpa` and `length` are its bytes,
    `why` says what is wrong with it.
    """

    def __init__(self, index: int, gpa: int, length: int, why: str) -> None:
        super().__init__(index, gpa, length, why)
        self.index = index
        self.gpa = gpa
        self.length = length
        self.why = why

    def __str__(self) -> str:
        return (
            f"range {self.index} of the table (gpa {self.gpa:#x}, {self.length} bytes) {self.why}"
        )


class GuestMemoryBusyError(RuntimeError):
    """Guest memory was to be unmapped while `leases` system calls or kernels may still touch it."""

    def __init__(self, leases: int) -> None:
        super().__init__(leases)
        self.leases = leases

    def __str__(self) -> str:
        return f"guest memory cannot be unmapped: {self.leases} leases are held"


class GuestMemoryClaimedError(RuntimeError):
    """Guest memory of `nbytes` bytes was to be migrated while a migration sends it away."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.nbytes = nbytes

    def __str__(self) -> str:
        return f"a migration under way is sending this guest's memory of {self.nbytes} bytes"


class ManifestError(ValueError):
    """A manifest that cannot be read; `why` is the reason as half a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the manifest cannot be used: {self.why}"


class StoredVmError(Exception):
    """A stored VM at `path` that cannot be opened, written or trusted; `why` is the reason as half
    a sentence.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"stored VM {self.path}: {self.why}"
