// The buttons of a running migration. Each says beforehand what it does to the guest; what cannot be
// undone is asked once more, with the figures of that moment.

import { element, setText } from "./dom.js";
import { actions } from "./words.js";

const MIB = 1 << 20;

export class Controls {
  /** `service` changes migrations; its errors are sentences. */
  constructor(service) {
    this._service = service;
    this._info = null;
    this._switchOver = new Action("Switch over now", "switch-over", () => this._ask(this._switchOver));
    this._tune = new Action("Tune…", "tune", () => this._openTuning());
    this._cancel = new Action("Cancel", "cancel", () => this._ask(this._cancel));
    this._switchOver.run = () => this._service.tune(this._info.id, { switch_over_now: true });
    this._cancel.run = () => this._service.cancel(this._info.id);
    this._actions = [this._switchOver, this._tune, this._cancel];
    this._failed = element("p", { class: "error", role: "alert" });
    this._confirming = new Confirming();
    this._tuning = new Tuning((changes) => this._service.tune(this._info.id, changes));
    this.node = element(
      "section",
      { class: "controls", "aria-label": "Change this migration" },
      ...this._actions.map(({ node }) => node),
      this._failed,
      this._confirming.node,
      this._tuning.node,
    );
  }

  show(info, reachable) {
    const another = this._info?.id !== info.id;
    if (another) setText(this._failed, "");
    this._info = info;
    this.node.hidden = info.state !== "running";
    const { switchOver, tune, cancel } = actions(info);
    this._switchOver.show(switchOver, reachable);
    this._tune.show(tune, reachable);
    this._cancel.show(cancel, reachable);
    this._confirming.refresh(reachable);
    // What was asked about one migration is never answered for another.
    if (another || info.state !== "running") {
      this._confirming.close();
      this._tuning.close();
    }
  }

  _ask(action) {
    setText(this._failed, "");
    this._confirming.open(action, this._info.vm, (error) => setText(this._failed, error));
  }

  _openTuning() {
    setText(this._failed, "");
    this._tuning.open(this._info.settings);
  }
}

/** A button, and what it would do. */
class Action {
  constructor(title, name, run) {
    this.title = title;
    this.sentence = "";
    this.possible = false;
    this._text = element("p", { id: `${name}-means` });
    // Not `disabled`: it can be reached, and says why it does nothing.
    this._button = element(
      "button",
      {
        type: "button", class: name, "aria-describedby": `${name}-means`,
        onclick: () => this.possible && run(),
      },
      title,
    );
    this.node = element("div", { class: "action card" }, this._button, this._text);
  }

  show({ offered, possible, sentence }, reachable) {
    this.node.hidden = !offered;
    this.possible = possible && reachable;
    this.sentence = sentence;
    this._button.setAttribute("aria-disabled", String(!this.possible));
    setText(this._text, reachable ? sentence : "The service does not answer.");
  }
}

/** One dialog for all that is asked again; its sentence follows the migration while it is open. */
class Confirming {
  constructor() {
    this._action = null;
    this._title = element("h2", { id: "confirming-title" });
    this._text = element("p", { id: "confirming-text" });
    this._yes = element("button", { type: "button", class: "yes", onclick: () => this._run() });
    this._no = element("button", { type: "button", class: "no", onclick: () => this.close() }, "Back");
    this.node = element(
      "dialog",
      { "aria-labelledby": "confirming-title", "aria-describedby": "confirming-text" },
      this._title,
      this._text,
      element("div", { class: "buttons" }, this._no, this._yes),
    );
  }

  open(action, vm, failed) {
    this._action = action;
    this._failed = failed;
    setText(this._title, `${action.title}: ${vm}?`);
    setText(this._yes, action.title);
    this.refresh();
    this.node.showModal();
    this._no.focus();
  }

  refresh(reachable = true) {
    if (this._action === null) return;
    setText(this._text, reachable ? this._action.sentence : "The service does not answer.");
    this._yes.disabled = !this._action.possible;
  }

  close() {
    this.node.close();
    this._action = null;
  }

  async _run() {
    const action = this._action;
    this.close();
    try {
      await action.run();
    } catch (error) {
      this._failed(error.message);
    }
  }
}

/** What can be changed, with the present values. */
class Tuning {
  constructor(change) {
    this._change = change;
    this._fields = {
      downtime_ms: field("Downtime limit, in ms", "The guest is paused once the rest is expected to move in this time.", { min: "1" }),
      rate_limit: field("Rate limit, in MiB/s", "Holds at once; 0 for none.", { min: "0" }),
      throttle_cap_percent: field("The guest may be slowed down by, in %", "For memory that it writes faster than it moves; 0 for never.", { min: "0", max: "99" }),
    };
    this._failed = element("p", { class: "error", role: "alert" });
    const form = element(
      "form",
      { method: "dialog", onsubmit: (event) => this._send(event) },
      element("h2", { id: "tuning-title" }, "Tune"),
      ...Object.values(this._fields).map(({ node }) => node),
      this._failed,
      element(
        "div",
        { class: "buttons" },
        element("button", { type: "button", class: "no", onclick: () => this.close() }, "Back"),
        element("button", { type: "submit", class: "yes" }, "Change"),
      ),
    );
    this.node = element("dialog", { "aria-labelledby": "tuning-title" }, form);
  }

  open(settings) {
    this._before = {
      downtime_ms: settings.downtime_ms,
      rate_limit: Math.round(settings.rate_limit / MIB),
      throttle_cap_percent: settings.throttle_cap_percent,
    };
    for (const [name, { input }] of Object.entries(this._fields)) input.value = this._before[name];
    setText(this._failed, "");
    this.node.showModal();
  }

  close() {
    this.node.close();
  }

  async _send(event) {
    event.preventDefault();
    const changes = {};
    for (const [name, { input }] of Object.entries(this._fields)) {
      const value = input.valueAsNumber;
      if (value !== this._before[name]) changes[name] = name === "rate_limit" ? value * MIB : value;
    }
    try {
      if (Object.keys(changes).length) await this._change(changes);
      this.close();
    } catch (error) {
      setText(this._failed, error.message);
    }
  }
}

function field(title, help, limits) {
  const id = title.replace(/\W+/g, "-").toLowerCase();
  const input = element("input", { id, type: "number", step: "1", required: true, "aria-describedby": `${id}-help`, ...limits });
  const node = element(
    "div",
    { class: "field" },
    element("label", { for: id }, title),
    input,
    element("p", { id: `${id}-help` }, help),
  );
  return { input, node };
}
