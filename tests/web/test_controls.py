"""The page's parts, each by itself: what events can do to them in any order."""

from typing import Any

import pytest

from tests.web.browser import Browser
from tests.web.guests import FOREVER, Pair

pytestmark = pytest.mark.timeout(300)  # a browser on a busy machine

RUNNING = """{
    id, vm: `vm-${id}`, state: "running", direction: "send", owner: null, runs: true,
    settings: { downtime_ms: 300, rate_limit: 0, throttle_cap_percent: 99 },
    progress: {
        phase: "precopy", iteration: 1, iteration_bytes: 9, iteration_bytes_done: 1, bytes_done: 1,
        total_bytes: 9, rate: 1, bandwidth: 1, dirty_rate: 1,
    },
}"""


def run(browser: Browser, module: str, names: str, script: str) -> Any:
    """What `script`, which is given the `names` of a module of the page, returns."""
    return browser.driver.execute_async_script(
        f"""const done = arguments[0];
        import("/assets/{module}").then(({names}) => {{ {script} }})
            .then(done, (error) => done(String(error)))"""
    )


@pytest.mark.parametrize("button", ["switch-over", "cancel", "tune"])
def test_what_is_asked_about_one_is_not_answered_for_another(
    browser: Browser, guests: Pair, button: str
) -> None:
    browser.open(guests.source.url)
    script = f"""
        const asked = [];
        const ask = async (id) => asked.push(id);
        const controls = new Controls({{ cancel: ask, tune: ask }});
        document.body.append(controls.node);
        const running = (id) => ({RUNNING});
        controls.show(running("a"), true);
        controls.node.querySelector("button.{button}").click();
        const title = controls.node.querySelector("dialog[open] h2").textContent;
        controls.show(running("a"), true);
        const before = controls.node.querySelectorAll("dialog[open]").length;
        controls.show(running("b"), true);
        return [title, before, controls.node.querySelectorAll("dialog[open]").length, asked];
    """
    title, before, after, asked = run(browser, "controls.js", "{ Controls }", script)
    assert (before, after, asked) == (1, 0, [])
    assert title == {"switch-over": "Switch over now: vm-a?", "cancel": "Cancel: vm-a?"}.get(
        button, "Tune"
    )


def test_of_one_that_has_failed_nothing_is_said_that_is_still_to_be_seen(
    browser: Browser, guests: Pair
) -> None:
    """It is undone for a while, and where on demand memory was lost the destination has the VM."""
    browser.open(guests.source.url)
    script = f"""
        const id = "a";
        const info = {RUNNING};
        info.progress.phase = "failed";
        const {{ switchOver, tune, cancel }} = actions(info);
        return [ownerSentence(info), ...[switchOver, tune, cancel].map((one) => one.sentence)];
    """
    owner, *sentences = run(browser, "words.js", "{ actions, ownerSentence }", script)
    assert owner == "It has failed. Who has vm-a is told once what was begun has been undone."
    assert set(sentences) == {"Too late: it has failed, and what was begun is being undone."}


@pytest.mark.parametrize("phase", ["connecting", "precopy", "switchover"])
def test_of_a_guest_that_does_not_run_nothing_is_said_to_go_on(
    browser: Browser, guests: Pair, phase: str
) -> None:
    browser.open(guests.source.url)
    script = f"""
        const id = "a";
        const info = {RUNNING};
        info.progress.phase = "{phase}";
        info.runs = false;
        const {{ switchOver, tune, cancel }} = actions(info);
        const ended = ownerSentence({{ ...info, state: "cancelled", owner: "source" }});
        const sentences = [switchOver, tune, cancel].map((one) => one.sentence);
        return [ownerSentence(info), ended, ...sentences];
    """
    owner, ended, switch_over, tune, cancel = run(
        browser, "words.js", "{ actions, ownerSentence }", script
    )
    assert owner == "The source has vm-a. Its guest does not run there."
    assert ended.endswith("as if nothing had been: its guest does not run there, as before.")
    assert switch_over.startswith("The guest does not run: ")
    assert cancel.startswith("Ends it: the source keeps the VM as it is")
    assert "goes on" not in f"{switch_over}{tune}{cancel}"


def test_what_is_to_be_asked_again_is_asked_though_an_answer_failed(
    browser: Browser, guests: Pair
) -> None:
    browser.open(guests.source.url)
    browser.until(lambda: browser.text("#link") == "live")
    browser.driver.execute_script(
        """const real = window.fetch;
        let fail;
        const failing = new Promise((_, reject) => { fail = () => reject(new Error("cut")); });
        window.fetch = () => failing;
        window.dispatchEvent(new Event("hashchange"));  // it asks
        window.dispatchEvent(new Event("hashchange"));  // and is to ask again
        document.getElementById("version").textContent = "";
        window.fetch = real;
        fail();"""
    )
    browser.until(lambda: browser.text("#version"))


def test_a_received_one_is_found_by_the_id_that_it_had_at_first(
    browser: Browser, guests: Pair
) -> None:
    """Its source has given it another one, and there is a newer migration."""
    first = guests.receive()
    guests.source.put("vm.send-migration", destination_url=first["url"])
    while (received := guests.destination.get("vm.migration"))["ended"] is None:
        pass
    assert received["id"] != first["id"]
    while guests.source.get("vm.migration")["ended"] is None:
        pass
    guests.settle()
    guests.send(**FOREVER)
    browser.open(f"{guests.source.url}/#{first['id']}")
    browser.until(lambda: browser.text(".about"))
    assert f"id {received['id']}" in browser.text(".about")
