"""What writing and reading a stored VM have in common: the names in its directory, and files
reached through a descriptor of it.

A directory is held open and locked (flock) from the time it is made or opened until it is closed:
one process at a time has a stored VM. Paths are looked up once; after that all goes through the
descriptor, which stays right when the directory is renamed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from aiomigrate.memory.errors import ManifestError, StoredVmError
from aiomigrate.memory.manifest import Manifest, Taken

__all__ = [
    "CONFIG_NAME",
    "MANIFEST_NAME",
    "MAX_DOCUMENT_BYTES",
    "MEMORY_PREFIX",
    "STATE_NAME",
    "is_locked",
    "is_partial",
    "leftovers",
    "lock",
    "memory_name",
    "new_file",
    "open_file",
    "os_errors",
    "partial_name",
    "read_document",
    "rename_new",
    "replace_file",
    "replace_manifest",
    "start_writing",
    "sweep",
    "sweep_all",
    "taken_by",
    "write_all",
]

# As Cloud Hypervisor's offload daemon names them (reference.md, section 2); the manifest is ours.
CONFIG_NAME = "migration_config.json"
STATE_NAME = "state.json"
MANIFEST_NAME = "aiomigrate.json"
MEMORY_PREFIX = "memory-"

MAX_DOCUMENT_BYTES = 1 << 30
"""Of Config, State or manifest. Arbitrary; State can hold the migration data of VFIO devices."""

_RENAME_NOREPLACE = 1  # linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2  # the same
_libc = ctypes.CDLL(None, use_errno=True)
_PARTIAL_END = r"\.partial-[0-9a-f]{8}"
_PARTIAL = re.compile(rf"\..+{_PARTIAL_END}")


def memory_name(slot: int, *, compressed: bool = False) -> str:
    """The name of a slot's memory file."""
    return f"{MEMORY_PREFIX}{slot}.zst" if compressed else f"{MEMORY_PREFIX}{slot}"


@contextmanager
def os_errors(path: str, doing: str) -> Iterator[None]:
    """Turn an OSError into a StoredVmError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise StoredVmError(path, f"{doing} failed: {error.strerror or error}") from error


def lock(directory: int, path: str) -> None:
    """Take the directory for this process; StoredVmError if it is taken already."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoredVmError(path, "it is in use by another process") from error


def is_locked(fd: int) -> bool:
    """Whether another process holds the lock of a file or directory; a probe, no claim."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def new_file(directory: int, name: str) -> int:
    """A descriptor of a new file, for reading and writing by its owner only."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    # Whatever the umask is.
    os.fchmod(fd, 0o600)
    return fd


def open_file(directory: int, path: str, name: str) -> int:
    """A descriptor of a regular file, for reading; StoredVmError."""
    with os_errors(path, f"opening {name}"):
        # Without waiting: it could be a FIFO.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoredVmError(path, f"{name} is not a regular file")
    return fd


def read_document(fd: int, path: str, name: str) -> bytes:
    """All of a file that should be a document; StoredVmError."""
    with os_errors(path, f"reading {name}"):
        size = os.fstat(fd).st_size
        if size > MAX_DOCUMENT_BYTES:
            raise StoredVmError(path, f"{name} has {size} bytes, too many for a document")
        pieces = []
        at = 0
        while piece := os.pread(fd, size + 1 - at, at):
            pieces.append(piece)
            at += len(piece)
            if at > size:
                raise StoredVmError(path, f"{name} grows while it is read")
    return b"".join(pieces)


def write_all(fd: int, data: bytes | memoryview, at: int = 0) -> None:
    """Write all of `data` into a file, `at` bytes from its start."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], at + done)


def partial_name(name: str, migration: str = "") -> str:
    """What `name` is called while it is made; by whom, if that is a migration whose id is known."""
    return f".{name}.partial-{migration[:8] or secrets.token_hex(4)}"


def is_partial(name: str) -> bool:
    """Whether `name` is one of those, of whatever."""
    return _PARTIAL.fullmatch(name) is not None


def replace_file(directory: int, name: str, data: bytes) -> int:
    """Replace a file, durably; at no time is there none, or half of one.

    A descriptor of the new one, which is locked (flock) from before it has its name.
    """
    partial = partial_name(name)
    fd = new_file(directory, partial)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_all(fd, data)
            os.fsync(fd)
            os.rename(partial, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(partial, dir_fd=directory)
            raise
        os.fsync(directory)
    except BaseException:
        os.close(fd)
        raise
    return fd


def replace_manifest(directory: int, manifest: Manifest) -> None:
    """Replace the manifest, durably, and remove what is left of earlier tries: the caller has the
    lock of the directory.
    """
    for name in os.listdir(directory):
        if is_partial(name):
            os.unlink(name, dir_fd=directory)
    os.close(replace_file(directory, MANIFEST_NAME, manifest.encode()))


def rename_new(parent: int, name: str, new_name: str) -> None:
    """Rename a directory within `parent`; FileExistsError if the new name is taken, by whatever it
    is.
    """
    try:
        call = _libc.renameat2
    except AttributeError:
        code = errno.ENOSYS
    else:
        if call(parent, os.fsencode(name), parent, os.fsencode(new_name), _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code), new_name)
    # A file system without it (NFS): mkdir claims the name, and rename puts a directory over an
    # empty one.
    os.mkdir(new_name, 0o700, dir_fd=parent)
    os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=parent)


def start_writing(fd: int) -> None:
    """Begin to write a file's dirty pages to disk (sync_file_range(2)); only a hint."""
    whole = ctypes.c_int64(0)
    _libc.sync_file_range(fd, whole, whole, _SYNC_FILE_RANGE_WRITE)


def taken_by(path: str, migration: str) -> bool:
    """Whether the directory at `path` is of a VM that was taken by this migration.

    Looks without the lock, which a receiver holds while it computes checksums. StoredVmError if
    there is a manifest that cannot be read.
    """
    try:
        with open(os.path.join(path, MANIFEST_NAME), "rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES)
        manifest = Manifest.decode(raw)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoredVmError(path, f"reading its manifest failed: {error.strerror}") from error
    except ManifestError as error:
        raise StoredVmError(path, str(error)) from error
    return any(
        isinstance(entry, Taken) and entry.migration == migration for entry in manifest.history
    )


def leftovers(path: str) -> tuple[str, ...]:
    """Directories beside `path` in which a receiver that ended too early was making it."""
    parent, name = os.path.split(path)
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return ()
    # Only what we make: a VM can have a name that begins as these do.
    ours = re.compile(rf"\.{re.escape(name)}{_PARTIAL_END}")
    places = [os.path.join(parent, found) for found in names if ours.fullmatch(found)]
    return tuple(place for place in places if not _in_use(place))


def sweep(path: str) -> None:
    """Remove the `leftovers` of a path: none of them is a VM, and they hold guest memory.

    What cannot be removed stays. One that another process has not locked yet may go, too: it makes
    another one (`NewDirectory`).
    """
    _remove_all(leftovers(path))


def sweep_all(parent: str) -> None:
    """Remove what receivers that ended too early have left in `parent`, whatever they were making.
    OSError if it cannot be read.
    """
    places = (os.path.join(parent, name) for name in sorted(os.listdir(parent)) if is_partial(name))
    _remove_all(place for place in places if not _in_use(place))


def _remove_all(places: Iterable[str]) -> None:
    for place in places:
        with suppress(OSError):
            _remove(place)


def _remove(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(path)
    finally:
        os.close(fd)


def _in_use(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True  # it went, or it is none
    try:
        return is_locked(fd)
    finally:
        os.close(fd)
