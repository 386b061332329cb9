"""All targets, one after the other: `python -m fuzz --runs N --seconds S [TARGET ...]`.

Each leaves what it did as a result, `fuzz_TARGET`, of which docs/fuzzing.md is made; the exit
status is that of the first finding.
"""

import argparse
import re
import subprocess
import sys
import time

from benchmarks.results import Recording
from fuzz.targets import TARGETS

_LONGEST = {"receive": 4096, "config": 8192, "fault_destination": 8192, "recording": 4096}
_DEADLINE_S = 10
"""For one execution: some take a millisecond."""
_RSS_MIB = 1024
_DONE = re.compile(r"^#(\d+)\s+DONE\s+cov: (\d+) ft: \d+ corp: (\d+)/.* rss: (\d+)Mb", re.MULTILINE)


def _fuzz(record: Recording, name: str, runs: int, seconds: int, seed: int) -> None:
    begun = time.monotonic()
    done = subprocess.run(  # noqa: S603 - this package
        [
            *(sys.executable, "-m", "fuzz.run", name),
            f"-runs={runs}",
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={_LONGEST.get(name, 512)}",
            f"-timeout={_DEADLINE_S}",
            f"-rss_limit_mb={_RSS_MIB}",
        ],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    took = time.monotonic() - begun
    found = _DONE.search(done.stderr)
    if done.returncode or found is None:
        sys.stderr.write(done.stderr[-4000:])
        raise SystemExit(done.returncode or 1)
    executions, edges, inputs, rss = map(int, found.groups())
    record.row(
        "fuzzed",
        target=name,
        executions=executions,
        time_s=round(took),
        edges=edges,
        inputs_kept=inputs,
        memory_mib=rss,
    )


def main() -> None:
    """Fuzz what the arguments say."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=-1, help="executions of each target")
    parser.add_argument("--seconds", type=int, default=0, help="time of each target")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    options = {"runs": arguments.runs, "seconds": arguments.seconds, "seed": arguments.seed}
    for name in arguments.targets or TARGETS:
        with Recording(f"fuzz_{name}", "fuzz", options) as record:
            _fuzz(record, name, **options)


if __name__ == "__main__":
    main()
