"""A browser and two services for all tests of a process."""

from collections.abc import Iterator

import pytest

from tests.web.browser import Browser, chromium, why_missing
from tests.web.guests import Pair, pair


@pytest.fixture(scope="session")
def running_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Started once: that takes seconds."""
    if why := why_missing():
        pytest.skip(why)
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(running_browser: Browser) -> Browser:
    """A reader of a light page in a wide window, with one tab."""
    first, *others = running_browser.driver.window_handles
    for handle in others:
        running_browser.driver.switch_to.window(handle)
        running_browser.driver.close()
    running_browser.driver.switch_to.window(first)
    running_browser.look()
    return running_browser


@pytest.fixture(scope="session")
def running_guests() -> Iterator[Pair]:
    """Started once, as they take seconds, too."""
    with pair() as found:
        yield found


@pytest.fixture
def guests(running_guests: Pair) -> Pair:
    """A guest that runs, and a place for it; nothing moves."""
    running_guests.settle()
    return running_guests
