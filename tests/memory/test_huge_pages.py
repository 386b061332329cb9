"""Fresh memory in huge pages: they come where a table covers them, and nowhere else.

In a process of its own with a mount namespace of its own, where a tmpfs gives huge pages to memory
that is advised to use them, whatever the machine gives to memfds.
"""

import functools
import json
import subprocess
import sys
import textwrap

import pytest

_PROGRAM = """
    import json, os, sys
    from pathlib import Path
    from aiomigrate.memory.guest import GuestMemory
    from aiomigrate.memory.map import Mapping, MemoryMap
    from aiomigrate.memory.ranges import make_table

    MIB = 1 << 20
    place, writable = "/mnt/memory", sys.argv[1] == "writable"
    fd = os.open(place, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 64 * MIB)
    low = Mapping(0, 0, 31 * MIB, "mem0", False, 0)
    high = Mapping(1, 1 << 32, 32 * MIB, "mem0", False, 0)
    # The second one begins in the middle of a huge page of the file.
    memory = GuestMemory.over_files(
        MemoryMap([low, high]), {0: fd, 1: fd}, offsets={1: 31 * MIB}, writable=writable
    )
    seen = []
    for rows in json.loads(sys.argv[2]):
        (memory.prepare if writable else memory.populate_read)(make_table(map(tuple, rows)))
        lines = Path("/proc/self/smaps").read_text().splitlines()
        huge = sum(int(line.split()[1]) for line in lines if line.startswith("ShmemPmdMapped:"))
        seen.append([os.fstat(fd).st_blocks // 2, huge])
    memory.close()
    print(json.dumps(seen))
"""
MIB = 1 << 20
HIGH = 1 << 32


@functools.cache
def _no_huge_pages() -> str | None:
    """Why there are none; None if there are."""
    try:
        if _run("writable", [(2 * MIB, 2 * MIB)]) == [[2048, 2048]]:
            return None
    except (OSError, subprocess.SubprocessError) as error:
        return f"no tmpfs with huge=advise of our own: {error}"
    return "this kernel gives no huge page to a tmpfs with huge=advise"


def _run(how: str, *tables: list[tuple[int, int]]) -> list[list[int]]:
    """KiB allocated, and KiB in huge pages, after each table."""
    mounts = 'mount -t tmpfs -o huge=advise,size=80m tmpfs /mnt && exec "$@"'
    program = [sys.executable, "-c", textwrap.dedent(_PROGRAM), how, json.dumps(tables)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounts, "sh", *program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seen: list[list[int]] = json.loads(done.stdout)
    return seen


@pytest.fixture(autouse=True)
def _needs_huge_pages() -> None:
    if why := _no_huge_pages():
        pytest.skip(why)


def test_whole_extents_come_as_huge_pages_and_the_rest_does_not() -> None:
    seen = _run(
        "writable",
        [(MIB, 4096), (3 * MIB - 4096, 4 * MIB)],  # 4 to 6 MiB is whole
        [(8 * MIB, MIB), (9 * MIB, MIB)],  # one in two ranges
        [(20 * MIB, 2 * MIB - 4096)],
    )
    assert seen == [[4 + 4096, 2048], [6148, 4096], [8192, 4096]]


def test_extents_are_the_file_s() -> None:
    """The first whole one of the second mapping is 1 MiB into it."""
    seen = _run("writable", [(HIGH, 2 * MIB)], [(HIGH + 3 * MIB, 2 * MIB)])
    assert seen == [[2048, 0], [4096, 2048]]


def test_scattered_pages_stay_scattered() -> None:
    pages = [(at * MIB + 4096 * at, 4096) for at in range(31)]
    assert _run("writable", pages) == [[4 * 31, 0]]


def test_reading_gives_no_advice() -> None:
    assert _run("read-only", [(2 * MIB, 4096)]) == [[4, 0]]
