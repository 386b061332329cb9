"""The page of a service in real Chromium, while a guest really moves."""

from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from aiomigrate.api.migrations import KEPT
from aiomigrate.cli.text import rate_text, size_text, time_text
from tests.web.browser import PHONE, WIDE, Browser
from tests.web.guests import FOREVER, Pair, Served, pair

pytestmark = pytest.mark.timeout(300)  # a browser on a busy machine


def is_state(browser: Browser, state: str) -> bool:
    return browser.text(".head .state") == state


def moves(browser: Browser) -> bool:
    """Whether an iteration has been judged: all figures are there."""
    return "–" not in browser.tiles().get("Expected downtime", "–")


def watch(browser: Browser, guests: Pair, **options: Any) -> None:
    """A migration that does not end by itself, on the page with all its figures."""
    guests.send(**FOREVER, **options)
    browser.open(guests.source.url)
    browser.until(lambda: moves(browser))


def test_figures_appear_go_on_and_end_as_the_report_has_them(
    browser: Browser, guests: Pair
) -> None:
    browser.open(guests.source.url)
    browser.until(lambda: browser.text("#link") == "live")
    id_ = guests.send(**FOREVER, connections=2)["id"]
    browser.until(lambda: moves(browser))
    assert is_state(browser, "running")
    assert f"id {id_}" in browser.text(".about")
    assert browser.text(".owner").startswith("The source has web-1. Its guest goes on there")
    before = browser.tiles()
    assert before.keys() == {
        "Memory left", "Moved", "Rate", "Guest writes", "Expected downtime", "Time"
    }  # fmt: skip
    browser.until(lambda: browser.tiles()["Moved"] != before["Moved"])
    browser.until(lambda: "does not converge" in browser.text(".trouble"))
    assert len(browser.driver.find_elements("css selector", ".plot canvas")) == 4
    browser.press("button.switch-over")
    assert browser.find("dialog[open] p").text.startswith("Pauses the guest now")
    browser.press("dialog[open] .yes")
    browser.until(lambda: is_state(browser, "done"))
    report = guests.source.get("vm.migration")["report"]
    expected = {
        "Downtime": time_text(report["downtime_ms"] / 1000),
        "Time": time_text(report["duration_s"]),
        "Moved": size_text(report["bytes"]),
        "Rate": rate_text(report["bytes"] / report["duration_s"]),
        "Iterations": str(report["iterations"]),
        "Connections": "2",
    }
    browser.until(lambda: browser.tiles().keys() == expected.keys())
    assert browser.tiles() == expected
    assert browser.text(".owner") == "The destination has web-1, and the guest runs there."
    assert browser.text(".share") == "100 %"
    assert not browser.find(".controls").is_displayed()
    assert browser.asked() == {guests.source.url}
    assert browser.complaints() == []


def test_cancel(browser: Browser, guests: Pair) -> None:
    watch(browser, guests)
    browser.press("button.cancel")
    asked = browser.find("dialog[open] p").text
    assert "the source keeps the VM, and its guest goes on there" in asked
    browser.press("dialog[open] .no")
    assert is_state(browser, "running"), "it was asked first"
    browser.press("button.cancel")
    browser.press("dialog[open] .yes")
    browser.until(lambda: is_state(browser, "cancelled"))
    assert browser.text(".owner").startswith("The source has web-1, as if nothing had been")
    assert browser.text(".phase") == "cancelled at “Move memory”"
    assert browser.text(".about").startswith("Was to be sent to tcp:")
    assert browser.text(".head .error").startswith("What happened: the migration was cancelled")
    assert guests.source.get("vm.info")["state"] == "Running"
    guests.send(**FOREVER)
    browser.until(lambda: is_state(browser, "running"))  # the page goes over to the one that runs
    browser.until(lambda: moves(browser))
    assert browser.tiles()["Guest writes"] != "0 B/s"
    states = browser.driver.find_elements("css selector", "#migrations a .state")
    assert [state.text for state in states[:2]] == ["running", "cancelled"]


def test_of_one_that_never_began_no_figure_is_shown(browser: Browser, guests: Pair) -> None:
    nobody = "tcp:127.0.0.1:1"
    guests.source.put("vm.send-migration", destination_url=nobody)
    browser.open(guests.source.url)
    browser.until(lambda: is_state(browser, "failed"))
    assert browser.text(".head .error").startswith(f"Why it failed: {nobody}: cannot connect")
    assert browser.text(".phase") == "failed at “Connect”"
    shown = browser.driver.find_elements("css selector", ".plot .nothing")
    assert [one.text for one in shown] == ["Nothing was measured."] * 4
    assert not browser.driver.find_elements("css selector", ".plot canvas")


def test_a_destination_that_waits(browser: Browser, guests: Pair) -> None:
    guests.receive()
    browser.open(guests.destination.url)
    browser.until(lambda: browser.text(".owner"))
    assert browser.text(".owner").startswith("No source has connected yet:")
    assert browser.text(".about").startswith("Receiving at tcp:")
    assert browser.tiles() == {}
    browser.press("button.cancel")
    browser.press("dialog[open] .yes")
    browser.until(lambda: is_state(browser, "cancelled"))


def test_a_long_list_is_scrolled_beside_what_is_looked_at(browser: Browser, guests: Pair) -> None:
    for _ in range(KEPT + 2):
        guests.source.put("vm.send-migration", destination_url="tcp:127.0.0.1:1")
        while guests.source.get("vm.migration")["ended"] is None:
            pass
    listed = len(guests.source.get("vm.migrations"))
    assert listed >= KEPT
    for size in (WIDE, PHONE):
        browser.look(size=size)
        browser.open(guests.source.url)
        browser.until(lambda: browser.text("#list-title") == f"Migrations ({listed})")
        where = browser.find("nav.list").rect
        assert where["y"] + where["height"] <= size[1]
        assert browser.violations() == []


def test_tuning_by_keyboard_and_in_another_tab(browser: Browser, guests: Pair) -> None:
    watch(browser, guests)
    browser.press("button.tune")
    field = browser.find("#downtime-limit-in-ms")
    assert field.get_attribute("value") == "1"
    assert browser.find("#rate-limit-in-mib-s").get_attribute("value") == "8"
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("2")
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    browser.until(lambda: not browser.driver.find_elements("css selector", "dialog[open]"))
    browser.until(lambda: "limit 2 ms" in browser.text(".tiles"))
    assert guests.source.get("vm.migration")["settings"]["downtime_ms"] == 2
    browser.until(lambda: "Changed: the downtime limit is 2 ms" in browser.text("article"))
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.look()
    browser.driver.get(guests.source.url)
    browser.until(lambda: "limit 2 ms" in browser.text(".tiles"))
    browser.press("button.cancel")
    browser.press("dialog[open] .yes")
    browser.until(lambda: is_state(browser, "cancelled"))
    browser.driver.switch_to.window(first)
    browser.until(lambda: is_state(browser, "cancelled"))


def test_a_paused_guest_does_not_go_on(browser: Browser, guests: Pair) -> None:
    guests.source.put("vm.pause")
    try:
        guests.send(**FOREVER | {"rate_limit": 1 << 20})
        browser.open(guests.source.url)
        browser.until(lambda: browser.text(".owner"))
        assert browser.text(".owner") == "The source has web-1. Its guest does not run there."
        assert "goes on" not in browser.text("article")
        browser.press("button.cancel")
        browser.press("dialog[open] .yes")
        browser.until(lambda: is_state(browser, "cancelled"))
        assert browser.text(".owner").endswith("its guest does not run there, as before.")
    finally:
        guests.settle()
        guests.source.put("vm.resume")


def test_a_service_that_goes_away_and_comes_back(browser: Browser) -> None:
    with pair() as guests:
        watch(browser, guests)
        port = guests.source.port
    browser.until(lambda: "does not answer" in browser.text("#link"))
    assert "this is what it told last" in browser.text("#link")
    assert browser.text("#said") == "The service does not answer any more."
    for name in ("switch-over", "tune", "cancel"):
        assert browser.find(f"button.{name}").get_attribute("aria-disabled") == "true"
    browser.press("button.cancel")
    assert not browser.driver.find_elements("css selector", "dialog[open]")
    again = Served(f"tcp:127.0.0.1:{port}")
    try:
        browser.until(lambda: browser.text("#link") == "live")
        browser.until(lambda: "No migration yet" in browser.find("#none").text)
        assert browser.violations() == []
    finally:
        again.close()


def test_what_the_service_refuses_is_said(browser: Browser, guests: Pair) -> None:
    watch(browser, guests)
    browser.press("button.tune")
    field = browser.find("#rate-limit-in-mib-s")
    browser.driver.execute_script("arguments[0].value = '99999999999999'", field)
    browser.press("dialog[open] .yes")
    browser.until(lambda: "rate_limit" in browser.text("dialog[open] .error"))


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_a_checker_of_accessibility_finds_nothing(
    browser: Browser, guests: Pair, size: tuple[int, int]
) -> None:
    browser.look(size=size)
    watch(browser, guests, connections=2)
    for scheme in ("light", "dark"):
        browser.look(scheme=scheme, size=size)
        assert browser.violations() == []
        for button in ("tune", "cancel"):
            browser.press(f"button.{button}")
            assert browser.violations() == []
            browser.press("dialog[open] .no")
    width = browser.driver.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0], "nothing is wider than the window"
    guests.source.put("vm.tune-migration", switch_over_now=True)
    browser.until(lambda: is_state(browser, "done"))
    for scheme in ("dark", "light"):
        browser.look(scheme=scheme, size=size)
        assert browser.violations() == []
