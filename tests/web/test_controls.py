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
    assert owner == "It has ended early. Who has vm-a is told once what was begun has been undone."
    assert set(sentences) == {"Too late: what was begun is being undone."}


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


def test_an_answer_has_a_deadline(browser: Browser, guests: Pair) -> None:
    """Cancelling has one that the engine keeps."""
    browser.open(guests.source.url)
    script = """
        const limits = [];
        const timeout = AbortSignal.timeout;
        AbortSignal.timeout = (ms) => { limits.push(ms); return timeout.call(AbortSignal, 1); };
        window.fetch = (_, { signal }) => new Promise((_, reject) => {
            signal.addEventListener("abort", () => reject(signal.reason));
        });
        const service = new Service();
        const told = (asked) => asked.then(() => "answered", ({ message }) => message);
        return Promise.all([service.ping(), service.cancel("a")].map(told))
            .then((sentences) => [limits, sentences]);
    """
    limits, sentences = run(browser, "service.js", "{ Service }", script)
    assert limits == [15_000, 330_000]
    assert sentences == ["no answer in 15 s", "no answer in 330 s"]


def test_a_stream_on_which_nothing_comes_is_said_to_be_silent_and_then_ended(
    browser: Browser, guests: Pair
) -> None:
    """As one is whose other end has gone without a word; the clock is the test's."""
    browser.open(guests.source.url)
    script = """
        let now = 0;
        let tick = null;
        const sources = [];
        performance.now = () => now;
        window.setInterval = (look) => { tick = look; };
        window.setTimeout = () => {};
        window.EventSource = class extends EventTarget {
            constructor() { super(); this.closed = false; sources.push(this); }
            close() { this.closed = true; }
        };
        const told = [];
        const hearing = new Hearing({
            opened: () => {}, heard: ({ event }) => told.push(event),
            silent: (seconds) => told.push(seconds), lost: () => told.push("lost"),
        });
        hearing.start();
        const after = (ms) => { now += ms; tick(); };
        after(10000);
        after(2000);
        sources[0].dispatchEvent(new MessageEvent("heartbeat", { data: '{"event":"heartbeat"}' }));
        after(1000);
        after(18000);
        after(1000);
        return [told, sources.map(({ closed }) => closed)];
    """
    told, closed = run(browser, "service.js", "{ Hearing }", script)
    assert told == [0, 12, "heartbeat", 0, 19, "lost"]
    assert closed == [True]


def test_what_was_heard_of_a_migration_goes_with_it(browser: Browser, guests: Pair) -> None:
    browser.open(guests.source.url)
    script = """
        const heard = new Heard();
        for (let number = 0; number < 150; number += 1) heard.add("a", number, String(number));
        heard.add("b", 1, "one");
        const before = heard.of("a").length;
        heard.keep(["b", "c"]);
        return [before, heard.of("a"), heard.of("b")];
    """
    assert run(browser, "history.js", "{ Heard }", script) == [100, [], [[1, "one"]]]


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
