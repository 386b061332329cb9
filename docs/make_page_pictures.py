"""Pictures of the page: `make pictures`, or `python -m docs.make_page_pictures [DIRECTORY]`.

A tiny guest really moves between two services (examples/tiny_vmm/serve.py), while Debian's Chromium
looks at the page: running and done, light and dark, and on a phone. The figures in the pictures are
those of the machine that made them.
"""  # noqa: INP001 - a script beside the documents, no package

import sys
import tempfile
import time
from pathlib import Path

from tests.web.browser import PHONE, Browser, chromium
from tests.web.guests import Pair, pair

HERE = Path(__file__).parent / "pictures"
WIDE = (1280, 1300)
MIB = 1 << 20
GUEST = (192 * MIB, 128)
"""Its memory, and pages that it writes a tick: up to 50 MiB/s."""
OPTIONS = {"connections": 4, "rate_limit": 60 * MIB, "downtime_ms": 1, "throttle_cap_percent": 0}


def take(browser: Browser, directory: Path, name: str, size: tuple[int, int] = WIDE) -> None:
    """One picture for each of the reader's choices."""
    for scheme in ("light", "dark"):
        browser.look(scheme=scheme, size=size)
        browser.driver.execute_script("scrollTo(0, 0)")
        time.sleep(0.5)  # for plots to be drawn anew in their colours: nothing tells when that is
        path = directory / f"page-{name}-{scheme}.png"
        browser.driver.save_screenshot(str(path))
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def follow(browser: Browser, guests: Pair, directory: Path) -> None:
    """A migration from its beginning to its end."""
    browser.look(size=WIDE)
    browser.open(guests.source.url)
    guests.send(**OPTIONS)
    browser.until(lambda: guests.source.get("vm.migration")["progress"]["iteration"] >= 2)
    browser.until(lambda: "iteration 0" not in browser.text(".tiles"))
    take(browser, directory, "running")
    take(browser, directory, "phone", PHONE)
    guests.source.put("vm.tune-migration", rate_limit=0, downtime_ms=300)
    browser.look(size=WIDE)
    browser.until(lambda: browser.text(".head .state") == "done")
    take(browser, directory, "done")


def main(directory: Path) -> None:
    """Make all."""
    directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as profile,
        chromium(Path(profile)) as browser,
        pair(*GUEST) as guests,
    ):
        follow(browser, guests, directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE)
