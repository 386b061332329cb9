"""Debian's Chromium, driven by Selenium: what a person sees of a page, and what a checker finds.

It asks nobody but the addresses that it is given; what it asked for is in its own log.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

__all__ = ["PHONE", "REBOUND", "WIDE", "Browser", "chromium", "why_missing"]

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
WIDE, PHONE = (1280, 900), (360, 740)
REBOUND = "rebound.example"
"""A name that its owner has led to this host."""
PATIENCE_S = 60
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--disable-dev-shm-usage",
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
)  # fmt: skip


def why_missing() -> str:
    """Why there is no browser to test with; empty if there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{missing[0]} is missing: Debian's chromium and chromium-driver" if missing else ""


@contextmanager
def chromium(profile: Path) -> Iterator["Browser"]:
    """One that runs, with the empty directory `profile` as its memory."""
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """What tests ask of it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """A page in the current tab, with none of what an earlier one has logged."""
        self.driver.get("about:blank")
        self.asked()
        self.complaints()
        self.driver.get(url)

    def look(self, *, scheme: str = "light", size: tuple[int, int] = WIDE) -> None:
        """As a reader who has chosen `scheme` ("light", "dark"), in a window of this size."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector. NoSuchElementException."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """All text of an element, seen or not; empty if there is none."""
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return str(found[0].get_attribute("textContent")) if found else ""

    def tiles(self) -> dict[str, str]:
        """The figures by their names, as they are at one moment."""
        script = """return Object.fromEntries([...document.querySelectorAll(".tile")].map(
            (tile) => [tile.querySelector("dt").textContent, tile.querySelector("dd").textContent]))
        """
        tiles: dict[str, str] = self.driver.execute_script(script)
        return tiles

    def press(self, selector: str) -> None:
        """Press a button, as the keyboard does."""
        self.find(selector).send_keys("\n")

    def until(self, holds: Callable[[], Any]) -> Any:
        """Wait until something holds, and give it. TimeoutException."""
        return WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.05).until(lambda _: holds())

    def asked(self) -> set[str]:
        """Which hosts or files it has asked since it was last asked itself, as `scheme://host`."""
        asked = set()
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = urlsplit(message["params"]["request"]["url"])
                asked.add(f"{url.scheme}://{url.netloc}")
        return asked - {"about://"}

    def complaints(self) -> list[str]:
        """What is on its console since."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it is, of all its rules."""
        self.driver.execute_script(AXE.read_text())
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document).then(done, (e) => done(String(e)))"
        )
        assert isinstance(found, dict), found
        assert found["passes"]
        return [
            f"{one['id']}: {one['help']}: {node['html'][:200]} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]
