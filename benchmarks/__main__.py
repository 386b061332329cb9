"""All that this machine can measure, one script after the other, then the pages with figures.

    python -m benchmarks [NAME ...]

Each script writes its result when it has all of it, so that one that fails or breaks off costs no
other: name it and run it again. What a script lacks (a program, a permission) it says, and is
passed over; its last result stays. Exit status 1 where one failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from benchmarks.results import SKIPPED
from docs.make_figures import main as make_pages

NAMES = (
    "import_time",
    "loopback",
    "tls",
    "callbacks",
    "destination",
    "bitmap_scan",
    "offload_snapshot",
    "on_demand",
    "round_trip",
    "real_peer",
)
LIMIT_S = 900.0
"""For one script; on two busy processors the longest took half of it."""


def run(name: str) -> str:
    """Run one script: how it ended."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            status = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            return f"broken off after {LIMIT_S:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own children, too
    if status == SKIPPED:
        return "skipped"
    return f"failed, status {status}" if status else "done"


def main() -> int:
    """Measure, and say how each script ended."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    ends = {}
    for name in names:
        began = time.monotonic()
        end = run(name)
        ends[name] = f"{end} ({time.monotonic() - began:.0f} s)"
        print(f"{name}: {ends[name]}\n", flush=True)
    make_pages()
    print(*(f"{name}: {end}" for name, end in ends.items()), sep="\n")
    return 0 if all(end.startswith(("done", "skipped")) for end in ends.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
