"""What a newcomer does, on a fresh clone and without this machine's caches: `make fresh`.

The committed state is cloned into an empty directory, and every line of docs/tutorial.md is typed
there in order, beginning with `make demo`: home, state and caches are empty, and of this
environment nothing is on the path. What the page shows is compared with what is printed. With
`--test` the whole of `make test` follows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.session import Session
from tests.support.snippets import ROOT, Block, blocks_of

PER_COMMAND_S = 1200.0
"""`make demo` downloads and installs what is locked, and compiles the kernels."""


def main() -> None:
    """Clone, type, and say what came of it; an AssertionError says what was different."""
    parser = argparse.ArgumentParser(prog="python -m tests.fresh_clone")
    parser.add_argument("--test", action="store_true", help="run `make test` there, too")
    tests = parser.parse_args().test
    page = ROOT / "docs" / "tutorial.md"
    with tempfile.TemporaryDirectory(prefix="aiomigrate-fresh-") as made:
        place, home = Path(made, "clone"), Path(made, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
        environment = newcomer(home)
        with Session(place, environment, PER_COMMAND_S) as session:
            for block in blocks_of(page):
                if block.mark is not None and block.mark.kind != "picture":
                    timed(session, block)
        if tests:
            subprocess.run(["make", "test"], cwd=place, env=environment, check=True)


def newcomer(home: Path) -> dict[str, str]:
    """An environment without anything of ours; where packages come from stays as it is set up."""
    ours = str(Path(sys.executable).parent)
    path = [part for part in os.environ["PATH"].split(":") if part != ours]
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return {**kept, "PATH": ":".join(path), "HOME": str(home), "LANG": "C.UTF-8"}


def timed(session: Session, block: Block) -> None:
    """Do what a block says, and print how long that took."""
    began = time.monotonic()
    session.perform(block)
    first = block.text.partition("\n")[0]
    print(f"{block.place:24} {time.monotonic() - began:6.1f} s  {first}", flush=True)


if __name__ == "__main__":
    main()
