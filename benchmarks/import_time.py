"""What `import aiomigrate` and `aiomigrate --help` load of `HEAVY`, and how long imports take.

python -m benchmarks.import_time
"""

import subprocess
import sys

from benchmarks.results import Recording

HEAVY = ("numba", "numpy", "uvloop", "rich", "typer", "aiohttp", "structlog")
CASES = {
    "import aiomigrate": ["-c", "import aiomigrate"],
    "aiomigrate --help": ["-m", "aiomigrate.cli", "--help"],
}


def main() -> None:
    """Measure and print."""
    with Recording("import_time", "benchmarks.import_time", {}) as record:
        for name, arguments in CASES.items():
            done = subprocess.run(
                [sys.executable, "-X", "importtime", *arguments],
                capture_output=True,
                text=True,
                check=True,
            )
            lines = [line.split("|") for line in done.stderr.splitlines() if line.count("|") == 2]
            loaded = {line[2].strip().partition(".")[0] for line in lines[1:]}
            record.row(
                "imports",
                command=name,
                imports_ms=sum(int(line[0].rpartition(":")[2]) for line in lines[1:]) / 1000,
                loads=", ".join(module for module in HEAVY if module in loaded) or "none",
            )


if __name__ == "__main__":
    main()
