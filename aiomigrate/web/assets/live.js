// The page of the service: which migrations there are, and the one that is looked at, as it goes on.
//
// What is shown is asked for once, kept up to date by events, and asked for anew when something ends,
// an iteration begins, or the service was away. One question is under way at a time.

import { Controls } from "./controls.js";
import { element, setText } from "./dom.js";
import { Heard, emptyHistory, extended, historyOf } from "./history.js";
import { sinceText } from "./format.js";
import { Hearing, Service } from "./service.js";
import { MigrationView } from "./view.js";
import { STATES, changesSentence, ownerSentence } from "./words.js";

const CHANGING = new Set([
  "migration-started", "migration-finished", "migration-failed", "migration-receive-ready",
  "migration-receive-started", "migration-receive-finished", "migration-receive-failed",
  "migration-memory-iteration", "migration-phase", "migration-tuned", "events-lost",
]);

class Page {
  constructor() {
    this._service = new Service();
    this._controls = new Controls(this._service);
    this._view = new MigrationView(this._controls.node);
    this._main = document.getElementById("migration");
    this._list = document.getElementById("migrations");
    this._listTitle = document.getElementById("list-title");
    this._link = document.getElementById("link");
    this._said = document.getElementById("said");
    this._version = document.getElementById("version");
    this._listed = [];
    this._info = null;
    this._history = emptyHistory();
    this._heard = new Heard();
    this._reachable = false;
    this._silence = 0; // s without news, once that is strange
    this._asking = false;
    this._askAgain = false;
    this._hearing = new Hearing({
      opened: () => this._open(),
      silent: (seconds) => this._fallSilent(seconds),
      lost: () => this._lose(),
      heard: (event) => this._hear(event),
    });
    addEventListener("hashchange", () => this._refresh());
    this._hearing.start();
  }

  async _open() {
    if (!this._reachable) this._say("Connected to the service.");
    this._reachable = true;
    await this._refresh();
  }

  _fallSilent(seconds) {
    if (seconds === this._silence) return;
    this._silence = seconds;
    this._showLink();
  }

  _lose() {
    if (this._reachable) this._say("The service does not answer any more.");
    this._reachable = false;
    this._silence = 0;
    this._showLink();
    if (this._info) this._show();
  }

  _hear({ event, properties, timestamp }) {
    if (event === "migration-progress" && properties.migration === this._info?.id) {
      this._take(properties.progress);
    }
    if (event === "migration-tuned") this._note(properties, timestamp);
    if (CHANGING.has(event)) this._refresh();
  }

  _take(progress) {
    if (this._info.state !== "running") return;
    this._info = { ...this._info, progress };
    this._history = extended(this._history, progress);
    this._show();
  }

  /** A change is in no history: it is known to those who were there. */
  _note({ migration, vm: _, ...changes }, { secs }) {
    const began = this._listed.find(({ id }) => id === migration)?.began;
    const at = began ? Math.max(0, secs - Date.parse(began) / 1000) : 0;
    this._heard.add(migration, at, changesSentence(changes));
  }

  async _refresh() {
    if (this._asking) {
      this._askAgain = true;
      return;
    }
    this._asking = true;
    try {
      do {
        this._askAgain = false;
        await this._load().catch(() => this._hearing.again()); // which asks anew
      } while (this._askAgain);
    } finally {
      this._asking = false;
    }
  }

  async _load() {
    const [ping, listed] = await Promise.all([this._service.ping(), this._service.migrations()]);
    setText(this._version, ping.version);
    this._listed = listed.reverse();
    this._heard.keep(listed.map(({ id }) => id));
    const before = this._info;
    this._info = await this._chosen();
    if (this._info) {
      this._history = historyOf(this._info);
      this._sayChange(before, this._info);
    }
    this._show();
  }

  /** The one in the page's address, else the one that is shown as long as it runs, else one that
   * runs, else the newest. The service knows a received one by the id that it had at first, too.
   */
  async _chosen() {
    const addressed = location.hash.slice(1); // an id: hexadecimal digits
    const named = addressed && (await this._service.migration(addressed));
    if (named) return named;
    const shown = this._info?.state === "running" && (await this._service.migration(this._info.id));
    if (shown && shown.state === "running") return shown;
    const other = this._listed.find(({ state }) => state === "running") ?? this._listed[0];
    return other ? this._service.migration(other.id) : null;
  }

  _show() {
    this._showLink();
    this._showList();
    if (!this._info) {
      document.getElementById("none").hidden = !this._reachable || this._listed.length > 0;
      this._view.node.remove();
      document.title = "aiomigrate";
      return;
    }
    document.getElementById("none").hidden = true;
    if (!this._view.node.isConnected) this._main.append(this._view.node);
    this._view.show(this._info, this._history, this._heard.of(this._info.id));
    this._controls.show(this._info, this._reachable);
    document.title = `${this._info.vm}: ${STATES[this._info.state]} – aiomigrate`;
  }

  _showLink() {
    const state = this._reachable ? (this._silence ? "silent" : "live") : "away";
    this._link.dataset.link = state;
    setText(this._link, {
      live: "live",
      silent: `no news for ${this._silence} s: what is shown may be old`,
      away: this._info
        ? "The service does not answer: this is what it told last. Trying again …"
        : "The service does not answer. Trying again …",
    }[state]);
  }

  _showList() {
    const rows = this._listed.map((one) => {
      const { state, url } = one.id === this._info?.id ? this._info : one;
      const where = `${one.direction === "receive" ? "at" : "to"} ${url}`;
      return [one.id, one.vm, where, state, sinceText(one.began)];
    });
    setText(this._listTitle, rows.length ? `Migrations (${rows.length})` : "Migrations");
    const key = JSON.stringify([rows, this._info?.id]);
    if (key === this._shownList) return;
    this._shownList = key;
    const focused = document.activeElement?.getAttribute("href");
    this._list.replaceChildren(...rows.map((row) => this._row(...row)));
    if (focused) this._list.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
  }

  _row(id, vm, where, state, since) {
    const current = id === this._info?.id;
    return element(
      "li",
      {},
      element(
        "a",
        { href: `#${encodeURIComponent(id)}`, "aria-current": current ? "true" : null },
        element("span", { class: "name" }, vm),
        element("span", { class: "state", "data-state": state }, STATES[state]),
        element("span", { class: "where" }, where),
        element("span", { class: "where" }, since),
      ),
    );
  }

  /** Only turning points are announced, never figures. */
  _sayChange(before, now) {
    if (before?.id !== now.id) return;
    const phase = (info) => info.progress?.phase;
    if (before.state !== now.state || phase(before) !== phase(now)) this._say(ownerSentence(now));
  }

  _say(sentence) {
    setText(this._said, sentence);
  }
}

new Page();
