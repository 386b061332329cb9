// The service, asked over HTTP and heard over server-sent events; nobody else is ever asked.

const API = "api/v1";
const RETRY_MS = 2000;

/** All names of events: EventSource hears only what it is told to. */
export const EVENTS = [
  "migration-started", "migration-memory-iteration", "migration-finished", "migration-failed",
  "migration-receive-ready", "migration-receive-started", "migration-receive-finished",
  "migration-receive-failed", "pausing", "paused", "resuming", "resumed", "snapshotting",
  "snapshotted", "restoring", "restored", "migration-phase", "migration-progress",
  "migration-tuned", "events-lost",
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
    return this._ask("GET", `vm.migration?migration=${encodeURIComponent(id)}`, undefined, true);
  }

  async cancel(id) {
    return this._ask("PUT", `vm.cancel-migration?migration=${encodeURIComponent(id)}`);
  }

  async tune(id, changes) {
    return this._ask("PUT", `vm.tune-migration?migration=${encodeURIComponent(id)}`, changes);
  }

  /** Errors are sentences, the outermost first. */
  async _ask(method, path, body, absent = false) {
    const answer = await fetch(`${API}/${path}`, {
      method,
      ...(body === undefined
        ? {}
        : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }),
    });
    if (answer.status === 204) return null;
    if (absent && answer.status === 404) return null;
    const read = await answer.json();
    if (!answer.ok) throw new Error(read.join(": "));
    return read;
  }
}

/** Listens while the page is seen, and comes back by itself.
 *
 * A browser opens six connections to one host: pages that nobody looks at must not hold them.
 */
export class Hearing {
  constructor({ opened, lost, heard }) {
    this._opened = opened;
    this._lost = lost;
    this._heard = heard;
    this._source = null;
    this._retry = null;
    document.addEventListener("visibilitychange", () => (document.hidden ? this._stop() : this.start()));
    // A page that is left for another one is kept for the way back, without its connections.
    addEventListener("pagehide", () => this._stop());
    addEventListener("pageshow", (event) => event.persisted && this.start());
  }

  start() {
    this._stop();
    this._source = new EventSource("events");
    this._source.addEventListener("open", () => this._opened());
    this._source.addEventListener("error", () => this._again());
    for (const name of EVENTS) {
      this._source.addEventListener(name, ({ data }) => this._heard(JSON.parse(data)));
    }
  }

  /** Not EventSource's own way back: it gives up after an answer that is none of events. */
  _again() {
    this._stop();
    this._lost();
    this._retry = setTimeout(() => this.start(), RETRY_MS);
  }

  _stop() {
    clearTimeout(this._retry);
    this._source?.close();
    this._source = null;
  }
}
