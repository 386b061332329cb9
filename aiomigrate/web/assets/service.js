// The service, asked over HTTP and heard over server-sent events; nobody else is ever asked.

const API = "api/v1";
const RETRY_MS = 2000;
const ANSWER_MS = 15_000; // arbitrary: an answer takes milliseconds
const CANCEL_MS = 330_000; // it comes when all is undone: over what the engine allows for that
const QUIET_MS = 11_000; // two heartbeats are missing: the service sends one after 5 s without events
const LOST_MS = 20_000; // nobody is there any more, though nothing says so

/** All names of events: EventSource hears only what it is told to. */
export const EVENTS = [
  "migration-started", "migration-memory-iteration", "migration-finished", "migration-failed",
  "migration-receive-ready", "migration-receive-started", "migration-receive-finished",
  "migration-receive-failed", "pausing", "paused", "resuming", "resumed", "snapshotting",
  "snapshotted", "restoring", "restored", "migration-phase", "migration-progress",
  "migration-tuned", "events-lost", "heartbeat",
];

export class Service {
  async ping() {
    return this._ask("GET", "vmm.ping");
  }

  async migrations() {
    return this._ask("GET", "vm.migrations");
  }

  /** One migration with its history; null if there is none of that id any more. */
  async migration(id) {
    return this._ask("GET", `vm.migration?migration=${encodeURIComponent(id)}`, { absent: true });
  }

  async cancel(id) {
    return this._ask("PUT", `vm.cancel-migration?migration=${encodeURIComponent(id)}`, { within: CANCEL_MS });
  }

  async tune(id, changes) {
    return this._ask("PUT", `vm.tune-migration?migration=${encodeURIComponent(id)}`, { body: changes });
  }

  /** The answer, whole in as many ms as `within`, or null. Errors are sentences. */
  async _ask(method, path, { body, absent = false, within = ANSWER_MS } = {}) {
    let answer;
    let read = null;
    try {
      answer = await fetch(`${API}/${path}`, {
        method,
        signal: AbortSignal.timeout(within),
        ...(body === undefined
          ? {}
          : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }),
      });
      if (answer.status !== 204) read = await answer.json();
    } catch (error) {
      const late = error.name === "TimeoutError";
      throw new Error(late ? `no answer in ${within / 1000} s` : `no answer: ${error.message}`, { cause: error });
    }
    if (absent && answer.status === 404) return null;
    if (!answer.ok) throw new Error(read.join(": "));
    return read;
  }
}

/** Listens while the page is seen, and comes back by itself.
 *
 * A browser opens six connections to one host: pages that nobody looks at must not hold them. One
 * whose other end is gone without a word stays open, so the time since the last event is looked at.
 */
export class Hearing {
  /** `silent` is told for how many seconds nothing was heard, once a second; 0 while that is fine. */
  constructor({ opened, silent, lost, heard }) {
    this._opened = opened;
    this._silent = silent;
    this._lost = lost;
    this._heard = heard;
    this._source = null;
    this._retry = null;
    this._watch = null;
    this._heardAt = 0;
    document.addEventListener("visibilitychange", () => (document.hidden ? this._stop() : this.start()));
    // A page that is left for another one is kept for the way back, without its connections.
    addEventListener("pagehide", () => this._stop());
    addEventListener("pageshow", (event) => event.persisted && this.start());
  }

  start() {
    this._stop();
    this._heardAt = performance.now();
    this._watch = setInterval(() => this._look(), 1000);
    this._source = new EventSource("events");
    this._source.addEventListener("open", () => this._opened());
    this._source.addEventListener("error", () => this.again());
    for (const name of EVENTS) {
      this._source.addEventListener(name, ({ data }) => {
        this._heardAt = performance.now();
        this._heard(JSON.parse(data));
      });
    }
  }

  _look() {
    const silence = performance.now() - this._heardAt;
    if (silence >= LOST_MS) this.again();
    else this._silent(silence >= QUIET_MS ? Math.floor(silence / 1000) : 0);
  }

  /** Not EventSource's own way back: it gives up after an answer that is none of events. */
  again() {
    this._stop();
    this._lost();
    this._retry = setTimeout(() => document.hidden || this.start(), RETRY_MS);
  }

  _stop() {
    clearTimeout(this._retry);
    clearInterval(this._watch);
    this._source?.close();
    this._source = null;
  }
}
