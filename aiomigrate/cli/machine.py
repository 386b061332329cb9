"""What this machine allows: each facility tried for real where trying is harmless.

A probe returns a `Finding`. It is `missing` only where every migration needs it, or nothing
takes its place; `warning` where something will be slower or impossible for some.
"""

import ctypes
import fcntl
import mmap
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from aiomigrate.cli.kernels import are_warm, cache_directory
from aiomigrate.cli.text import rate_text, size_text

__all__ = ["PROBES", "Finding", "Level", "probe_all"]

_MIB = 1 << 20


class Level(StrEnum):
    """How good a finding is."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One facility."""

    name: str
    level: Level
    found: str
    meaning: str = ""
    """What it means for a migration; where all is well, nothing need be said."""
    advice: str = ""
    required: bool = False
    """Whether every migration needs it."""


def probe_all() -> list[Finding]:
    """Every finding, in the order of `PROBES`."""
    return [probe() for probe in PROBES]


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def system() -> Finding:
    """Kernel and machine: the engine needs a 64-bit Linux that counts little-endian."""
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform == "linux" and sys.byteorder == "little" and sys.maxsize > 1 << 32:
        return Finding("system", Level.OK, found, required=True)
    return Finding(
        "system",
        Level.MISSING,
        found,
        "aiomigrate needs Linux on a 64-bit little-endian machine",
        required=True,
    )


def python() -> Finding:
    """The interpreter: an old one would not have come this far."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    return Finding("python", Level.OK, found, required=True)


def libraries() -> Finding:
    """What the engine imports."""
    names = ("numpy", "numba", "xxhash", "uvloop")
    absent = [name for name in names if find_spec(name) is None]
    if not absent:
        return Finding("libraries", Level.OK, ", ".join(names), required=True)
    return Finding(
        "libraries",
        Level.MISSING,
        f"without {', '.join(absent)}",
        "no migration is possible",
        "install aiomigrate again: pip install --force-reinstall 'aiomigrate[all]'",
        required=True,
    )


def numba_cache() -> Finding:
    """Compiled kernels."""
    directory = cache_directory()
    if directory is None:
        return Finding(
            "numba cache",
            Level.WARNING,
            "no directory for it can be written",
            "kernels are compiled for some seconds before each migration",
            "set NUMBA_CACHE_DIR to a directory that only this user can write",
        )
    if are_warm():
        return Finding("numba cache", Level.OK, f"warm, in {directory}")
    return Finding(
        "numba cache",
        Level.WARNING,
        f"cold, in {directory}",
        "the next migration begins some seconds later: kernels are compiled first",
        "run aiomigrate warm-up",
    )


def kvm() -> Finding:
    """KVM_GET_API_VERSION on /dev/kvm."""
    meaning = "stored VMs are received and sent all the same; no guest can run here"
    try:
        with Path("/dev/kvm").open("r+b", buffering=0) as device:
            version = fcntl.ioctl(device, 0xAE00)
    except OSError as error:
        advice = (
            "let this user into the group kvm"
            if isinstance(error, PermissionError)
            else "load kvm_intel or kvm_amd, or allow nested virtualisation"
        )
        return Finding("kvm", Level.WARNING, f"/dev/kvm: {error.strerror}", meaning, advice)
    return Finding("kvm", Level.OK, f"/dev/kvm, API version {version}")


def userfaultfd() -> Finding:
    """A descriptor that also sees the kernel's (KVM's) faults, from the device or the call."""
    sysctl = _read("/proc/sys/vm/unprivileged_userfaultfd")
    ptrace = bool(int(_status_field("CapEff") or "0", 16) & 1 << 19)  # CAP_SYS_PTRACE
    state = (
        f"vm.unprivileged_userfaultfd={sysctl or '?'}, CAP_SYS_PTRACE {'yes' if ptrace else 'no'}"
    )
    try:
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        way = f"/dev/userfaultfd: {error.strerror}"
    else:
        try:
            os.close(fcntl.ioctl(device, 0xAA00, os.O_CLOEXEC))  # USERFAULTFD_IOC_NEW
            return Finding("userfaultfd", Level.OK, f"/dev/userfaultfd; {state}")
        except OSError as error:
            way = f"/dev/userfaultfd: {error.strerror}"
        finally:
            os.close(device)
    number = {"x86_64": 323, "aarch64": 282}.get(platform.machine())
    if number is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
        if fd >= 0:
            os.close(fd)
            return Finding("userfaultfd", Level.OK, f"by system call; {state}")
    return Finding(
        "userfaultfd",
        Level.WARNING,
        f"{way}; {state}",
        "pre-copy does not need it; post-copy cannot serve a guest's faults",
        "give this user /dev/userfaultfd (chgrp, chmod g+rw) or the capability CAP_SYS_PTRACE",
    )


def _status_field(name: str) -> str:
    for line in _read("/proc/self/status").splitlines():
        field, _, value = line.partition(":")
        if field == name:
            return value.strip()
    return ""


def pagemap_scan() -> Finding:
    """PAGEMAP_SCAN (Linux 6.7) of one page of our own."""
    present = 1 << 3  # PAGE_IS_PRESENT
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        page[0] = 1
        hold = ctypes.c_char.from_buffer(page)
        start = ctypes.addressof(hold)
        region = ctypes.create_string_buffer(24)  # struct page_region
        arguments = bytearray(  # struct pm_scan_arg, linux/fs.h
            struct.pack(
                "<12Q", 96, 0, start, start + mmap.PAGESIZE, 0,
                ctypes.addressof(region), 1, 0, 0, present, 0, present,
            )
        )  # fmt: skip
        try:
            with Path("/proc/self/pagemap").open("rb") as pagemap:
                count = fcntl.ioctl(pagemap, 0xC0606610, arguments)
        except OSError as error:
            return Finding(
                "pagemap scan",
                Level.WARNING,
                f"PAGEMAP_SCAN: {error.strerror}",
                "a running VMM's own writes to guest memory cannot be tracked by it",
                "Linux 6.7 or newer has it",
            )
        finally:
            del hold
    return Finding("pagemap scan", Level.OK, f"PAGEMAP_SCAN works ({count} region found)")


def populate() -> Finding:
    """MADV_POPULATE_WRITE (Linux 5.14) on one page."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(23)
        except OSError as error:
            return Finding(
                "populate",
                Level.WARNING,
                f"MADV_POPULATE: {error.strerror}",
                "pages are touched one by one: the destination is several times slower",
                "Linux 5.14 or newer has it",
            )
    return Finding("populate", Level.OK, "MADV_POPULATE_READ and _WRITE work")


def tcp_buffers() -> Finding:
    """The largest buffers that the kernel's autotuning may give a connection."""
    try:
        read = int(_read("/proc/sys/net/ipv4/tcp_rmem").split()[2])
        write = int(_read("/proc/sys/net/ipv4/tcp_wmem").split()[2])
    except (IndexError, ValueError):
        return Finding("tcp buffers", Level.WARNING, "tcp_rmem and tcp_wmem cannot be read")
    # Half of a receive buffer is the kernel's own bookkeeping (tcp_adv_win_scale=1, tcp(7)).
    rate = min(read / 2, write) / 0.1
    found = f"tcp_rmem up to {size_text(read)}, tcp_wmem up to {size_text(write)}"
    meaning = f"at 100 ms round trip one connection moves at most about {rate_text(rate)}"
    if min(read, write) >= 4 * _MIB:
        return Finding("tcp buffers", Level.OK, found, meaning)
    return Finding(
        "tcp buffers",
        Level.WARNING,
        found,
        meaning,
        "over long distances use more connections, or raise net.ipv4.tcp_rmem and tcp_wmem",
    )


def open_files() -> Finding:
    """RLIMIT_NOFILE: 128 lanes and what else a process holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_limit(soft)} (at most {_limit(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= 512:
        return Finding("open files", Level.OK, found, required=True)
    if soft >= 64:
        return Finding(
            "open files",
            Level.WARNING,
            found,
            "enough for some connections, not for 128 of them",
            "ulimit -n 1024",
        )
    return Finding(
        "open files",
        Level.MISSING,
        found,
        "not enough for the files and connections of a migration",
        "ulimit -n 1024",
        required=True,
    )


def locked_memory() -> Finding:
    """RLIMIT_MEMLOCK."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == resource.RLIM_INFINITY else size_text(soft)
    return Finding(
        "locked memory", Level.OK, found, "only VMMs that pin guest memory (VFIO) need more"
    )


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def huge_pages() -> Finding:
    """Free pages of the default size."""
    fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    try:
        size = int(fields["Hugepagesize"].split()[0]) * 1024
        free = int(fields["HugePages_Free"])
    except (KeyError, ValueError, IndexError):
        return Finding("huge pages", Level.OK, "none", "needed by guests with hugepages=on only")
    meaning = "" if free else "needed by guests with hugepages=on only"
    return Finding("huge pages", Level.OK, f"{free} free of {size_text(size)}", meaning)


def transparent_huge_pages() -> Finding:
    """Whether shared guest memory (memfd) may get them."""
    shared = _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    private = _chosen("/sys/kernel/mm/transparent_hugepage/enabled")
    found = f"enabled={private}, shmem_enabled={shared}"
    if shared in {"always", "within_size", "advise", "force"}:
        return Finding("transparent huge pages", Level.OK, found)
    return Finding(
        "transparent huge pages",
        Level.WARNING,
        found,
        "a VMM's shared memory is touched in pages of 4 KiB: its first pass is slower",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
    )


def _chosen(path: str) -> str:
    text = _read(path)
    return text.partition("[")[2].partition("]")[0] or "?"


PROBES: tuple[Callable[[], Finding], ...] = (
    system,
    python,
    libraries,
    numba_cache,
    kvm,
    userfaultfd,
    pagemap_scan,
    populate,
    tcp_buffers,
    open_files,
    locked_memory,
    huge_pages,
    transparent_huge_pages,
)
