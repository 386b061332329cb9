"""Dirty bitmap to ranges, beside the same scan in C: a 12 TiB guest, 384 MiB of bitmap.

    python -m benchmarks.bitmap_scan [--mib 384] [--rounds 3]

At each density `dirty_tables` goes over the whole bitmap, table by table, and drops them as they
come: the whole scan (and the processor's time for it, which counts where the machine is busy), the
first chunk of 16 MiB as a lane takes it, and the most that the process grew by. The C programs,
built here with `gcc -O2`, scan the same bitmap into one growing vector, in turn with ours: `plain`
looks at bit after bit, `words` passes over empty words and finds bits by counting zeros. Where
their vector would be over 2 GiB, both sides scan as long a piece of the bitmap as fits, and times
are of that piece, scaled to the whole.
"""

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aiomigrate.memory.bitmaps import dirty_bytes, dirty_tables, union
from aiomigrate.memory.map import Mapping, MemoryMap
from aiomigrate.pool import chunks_of
from benchmarks.results import Cell, Recording, need_programs

MIB = 1 << 20
PAGE = 4096
VECTOR_BYTES = 2 << 30
RANGE_BYTES = 16
SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>

struct range { uint64_t gpa, length; };
struct vector { struct range *at; uint64_t count, room; };

static void push(struct vector *v, uint64_t first, uint64_t end)
{
    if (v->count == v->room) {
        v->room = v->room ? 2 * v->room : 1024;
        v->at = realloc(v->at, v->room * sizeof *v->at);
        if (!v->at)
            abort();
    }
    v->at[v->count++] = (struct range){ first * 4096, (end - first) * 4096 };
}

uint64_t plain(const uint64_t *bitmap, uint64_t pages)
{
    struct vector v = { 0, 0, 0 };
    uint64_t first = 0;
    int inside = 0;
    for (uint64_t page = 0; page < pages; page++) {
        int set = bitmap[page / 64] >> page % 64 & 1;
        if (set && !inside)
            first = page;
        else if (!set && inside)
            push(&v, first, page);
        inside = set;
    }
    if (inside)
        push(&v, first, pages);
    free(v.at);
    return v.count;
}

uint64_t words(const uint64_t *bitmap, uint64_t pages)
{
    struct vector v = { 0, 0, 0 };
    uint64_t first = 0, end = 0; /* the run that may go on */
    for (uint64_t word = 0; word < pages / 64; word++) {
        for (uint64_t left = bitmap[word]; left; ) {
            uint64_t low = __builtin_ctzll(left);
            uint64_t rest = ~(left >> low);
            uint64_t length = rest ? __builtin_ctzll(rest) : 64;
            uint64_t page = 64 * word + low;
            if (page == end) {
                end += length;
            } else {
                if (end > first)
                    push(&v, first, end);
                first = page;
                end = page + length;
            }
            left = low + length == 64 ? 0 : left >> (low + length) << (low + length);
        }
    }
    if (end > first)
        push(&v, first, end);
    free(v.at);
    return v.count;
}
"""

Bitmap = NDArray[np.uint64]


def build(directory: str) -> ctypes.CDLL:
    """Compile the C programs."""
    source, library = Path(directory, "scan.c"), Path(directory, "scan.so")
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    scans = ctypes.CDLL(str(library))
    for name in ("plain", "words"):
        getattr(scans, name).restype = ctypes.c_uint64
        getattr(scans, name).argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    return scans


def bitmaps(words: int) -> Iterator[tuple[str, Bitmap]]:
    """(what is set, bitmap); one array, filled anew each time."""
    bitmap = np.zeros(words, np.uint64)
    bitmap += np.uint64(0)  # touched: else the kernel's one zero page is read
    yield "0 %", bitmap
    generator = np.random.default_rng(1)
    for percent in (0.1, 1, 5, 50):
        for begin in range(0, words, MIB // 64):
            bits = generator.random(MIB, dtype=np.float32) < percent / 100
            part = np.packbits(bits).view(np.uint64)
            bitmap[begin : begin + MIB // 64] = part[: words - begin]
        yield f"{percent} %", bitmap
    bitmap[:] = 2**64 - 1
    yield "100 %", bitmap
    bitmap[:] = 0x5555555555555555
    yield "alternating", bitmap


def memory_kib(field: str) -> int:
    """KiB of this process that are in memory (VmRSS) or were at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise LookupError(field)


class Scan:
    """One of our scans, measured."""

    def __init__(self, bitmap: Bitmap) -> None:
        memory_map = MemoryMap([Mapping(0, 0, 64 * PAGE * len(bitmap), "mem0", False, 0)])
        began = time.perf_counter()
        first = next(chunks_of(dirty_tables(memory_map, [bitmap]), 16 * MIB), None)
        self.first_s = time.perf_counter() - began if first is not None else None
        self.ranges = 0
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed before would hide the growth
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew, proc(5)
        before = memory_kib("VmRSS")
        end = -1
        began, worked = time.perf_counter(), time.thread_time()
        for table in dirty_tables(memory_map, [bitmap]):
            # A long run comes in parts, of which C makes one range.
            self.ranges += len(table) - (int(table["gpa"][0]) == end)
            end = int(table["gpa"][-1] + table["length"][-1])
        self.seconds = time.perf_counter() - began
        self.worked_s = time.thread_time() - worked
        self.added_kib = memory_kib("VmHWM") - before


def in_c(scan: object, bitmap: Bitmap, ranges: int) -> float:
    """Seconds of a C program."""
    assert callable(scan)
    began = time.perf_counter()
    found = scan(bitmap.ctypes.data, 64 * len(bitmap))
    seconds = time.perf_counter() - began
    assert found == ranges
    return seconds


def whole_calls(record: Recording, words: int, rounds: int) -> None:
    """What counting and joining the bitmaps of 1 TiB take, the least of some."""
    bitmap = np.full(words, 0x5555555555555555, np.uint64)
    memory_map = MemoryMap([Mapping(0, 0, 64 * PAGE * words, "mem0", False, 0)])
    other = bitmap << np.uint64(1)
    counting, joining = [], []
    for _ in range(1 + rounds):  # the first call of each kernel takes longer
        began = time.perf_counter()
        dirty_bytes(memory_map, [bitmap])
        counted = time.perf_counter()
        union([bitmap], [other])
        counting.append(1000 * (counted - began))
        joining.append(1000 * (time.perf_counter() - counted))
    record.row("one_tib", dirty_bytes_ms=min(counting), union_ms=min(joining))


def measure(record: Recording, words: int, rounds: int, scans: ctypes.CDLL) -> None:
    """All densities."""
    whole_calls(record, 32 * MIB // 8, rounds)
    Scan(np.full(MIB, 2**64 - 1, np.uint64))  # the first call of each kernel takes longer
    beside_c: list[dict[str, Cell]] = []
    for name, bitmap in bitmaps(words):
        whole = [Scan(bitmap) for _ in range(rounds)]
        firsts = [scan.first_s for scan in whole if scan.first_s is not None]
        record.row(
            "scan",
            bits_set=name,
            ranges=whole[0].ranges,
            whole_scan_ms=1000 * statistics.median(scan.seconds for scan in whole),
            least_processor_time_ms=1000 * min(scan.worked_s for scan in whole),
            slowest_first_chunk_ms=1000 * max(firsts) if firsts else None,
            memory_added_mib=max(scan.added_kib for scan in whole) / 1024,
        )
        piece = min(words, words * VECTOR_BYTES // max(1, RANGE_BYTES * whole[0].ranges))
        scale = 1000 * words / piece
        ours, plain, by_words = [], [], []
        for _ in range(rounds):
            scan = Scan(bitmap[:piece])
            ours.append(scan.seconds * scale)
            plain.append(in_c(scans.plain, bitmap[:piece], scan.ranges) * scale)
            by_words.append(in_c(scans.words, bitmap[:piece], scan.ranges) * scale)
        mine, plain_ms, words_ms = map(statistics.median, (ours, plain, by_words))
        beside_c.append(
            {
                "bits_set": name,
                "measured_percent": 100 * piece / words,
                "ours_ms": mine,
                "plain_ms": plain_ms,
                "words_ms": words_ms,
                "plain_to_ours": plain_ms / mine,
                "words_to_ours": words_ms / mine,
            }
        )
    for row in beside_c:
        record.row("beside_c", **row)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    need_programs("gcc")
    with (
        tempfile.TemporaryDirectory() as directory,
        Recording("bitmap_scan", "benchmarks.bitmap_scan", vars(arguments)) as record,
    ):
        measure(record, arguments.mib * MIB // 8, arguments.rounds, build(directory))


if __name__ == "__main__":
    main()
