"""What `import aiomigrate` and `aiomigrate --help` load, and how long that takes.

python -m benchmarks.import_time
"""

import subprocess
import sys

HEAVY = ("numba", "numpy", "uvloop", "rich", "typer", "aiohttp", "structlog")
CASES = {
    "import aiomigrate": ["-c", "import aiomigrate"],
    "aiomigrate --help": ["-m", "aiomigrate.cli", "--help"],
}


def main() -> None:
    """Measure and print."""
    for name, arguments in CASES.items():
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
        loaded = {row[2].strip().partition(".")[0] for row in rows[1:]}
        total_ms = sum(int(row[0].rpartition(":")[2]) for row in rows[1:]) / 1000
        heavy = [module for module in HEAVY if module in loaded] or ["none"]
        print(f"{name}: {total_ms:.0f} ms of imports; of {', '.join(HEAVY)}: {', '.join(heavy)}")


if __name__ == "__main__":
    main()
