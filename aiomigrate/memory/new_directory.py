"""A directory that appears at its path whole or not at all.

It is made beside the path, as `.<name>.partial-<random>`, and locked as soon as it is there; what
processes that were killed have left of that name is removed first. Once it is known which migration
makes it its id takes the place of what is random (`belong_to`). One that was swept away before
it was locked is made anew. What is in it, and durable, appears by a rename that never goes over
anything. `discard` takes it away whatever came before, so that a failure to make the rename durable
leaves nothing either.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress

from aiomigrate.memory import directory
from aiomigrate.memory.errors import StoredVmError

__all__ = ["NewDirectory"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TRIES = 8
"""Arbitrary: whoever sweeps looks once, and has to do so between two of our system calls."""


class NewDirectory:
    """A directory in the making, held until `close` or `discard`. Every failure is a StoredVmError;
    an OSError behind it is its cause.
    """

    fd: int
    """The directory itself, whatever its name is; -1 once it is closed."""
    files: dict[str, int]
    """Descriptors of the files made in it, by name; closed with it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the directory beside `path`, of which nothing may exist yet but its parent."""
        self._parent = self.fd = -1
        self.files = {}
        self.path = os.path.abspath(os.fspath(path))
        parent, self._name = os.path.split(self.path)
        self._partial = ""
        self._made = self._appeared = False
        if os.path.lexists(self.path):
            raise StoredVmError(self.path, "the path exists already")
        directory.sweep(self.path)
        try:
            with directory.os_errors(self.path, "making the directory"):
                self._parent = os.open(parent, _DIRECTORY)
                for _ in range(_TRIES):
                    if self._make():
                        return
            raise StoredVmError(self.path, "what is made there is swept away again and again")
        except BaseException:
            self.discard()
            raise

    def _make(self) -> bool:
        """Make it and lock it. False if somebody who sweeps saw it before it was locked, and may
        have taken it for a leftover: nothing of it is there then.
        """
        self._partial = directory.partial_name(self._name)
        os.mkdir(self._partial, 0o700, dir_fd=self._parent)
        self._made = True
        try:
            self.fd = os.open(self._partial, _DIRECTORY, dir_fd=self._parent)
            os.fchmod(self.fd, 0o700)
            directory.lock(self.fd, self.path)
            os.stat(self._partial, dir_fd=self._parent)
        except (FileNotFoundError, StoredVmError):
            self._remove()
            self._made = False
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
            return False
        return True

    def belong_to(self, migration: str) -> None:
        """Name it after the migration with this id: what a crash leaves says whose it was. An
        earlier VM of that path may have been taken over, and moved since.
        """
        name = directory.partial_name(self._name, migration)
        with directory.os_errors(self.path, "naming the migration"):
            directory.rename_new(self._parent, self._partial, name)
        self._partial = name

    def new_file(self, name: str) -> int:
        """A new file in it. OSError."""
        fd = self.files[name] = directory.new_file(self.fd, name)
        return fd

    def require_space(self, needed: int) -> None:
        """Refuse what may take more (bytes) than is free for this user."""
        with directory.os_errors(self.path, "asking for free space"):
            found = os.fstatvfs(self.fd)
        free = found.f_bavail * found.f_frsize
        if free < needed:
            raise StoredVmError(self.path, f"{needed} bytes are needed and {free} are free")

    def appear(self) -> None:
        """Rename it, and make that durable; what is in it must be so already. After an error
        nothing is certain but that `discard` removes it.
        """
        try:
            directory.rename_new(self._parent, self._partial, self._name)
        except FileExistsError as error:
            raise StoredVmError(self.path, "the path exists already") from error
        except OSError as error:
            raise StoredVmError(self.path, f"renaming failed: {error.strerror}") from error
        self._appeared = True
        with directory.os_errors(self.path, "making the rename durable"):
            os.fsync(self._parent)

    def discard(self) -> None:
        """Remove it and all its files, and let go of it; idempotent."""
        try:
            with directory.os_errors(self.path, "discarding"):
                self._remove()
        finally:
            self.close()

    def _remove(self) -> None:
        # Where a file system is read-only, removing what is not there fails, too.
        if self._parent < 0 or not self._made:
            return
        if self._appeared:
            # It disappears as it appeared: whole, and before the first of its files goes.
            directory.rename_new(self._parent, self._name, self._partial)
            self._appeared = False
            os.fsync(self._parent)
        if self.fd >= 0:
            for name in os.listdir(self.fd):
                os.unlink(name, dir_fd=self.fd)
        with suppress(FileNotFoundError):
            os.rmdir(self._partial, dir_fd=self._parent)

    def close(self) -> None:
        """Let go of it as it is; idempotent."""
        fds = [*self.files.values(), self.fd, self._parent]
        self.files.clear()
        self.fd = self._parent = -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        if self._parent >= 0:
            warnings.warn(
                f"the writer of {self.path} was not closed", ResourceWarning, stacklevel=1
            )
            self.close()
