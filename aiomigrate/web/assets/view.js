// One migration, running or ended: the same for the page of the service and for a report that is kept.

import { connectionNames, fractionOf, laneText, reachedPhase } from "./history.js";
import { element, scrolled, setText, table } from "./dom.js";
import {
  humanised, millisecondsText, momentText, percentText, rateText, sizeText, timeText,
} from "./format.js";
import { Plots } from "./plots.js";
import {
  LIMITS, STAGES, STATES, STEPS, capital, leftBytes, ownerOf, ownerSentence, phaseText,
  wayText,
} from "./words.js";

const ROWS = 60; // of the table of measurements: every n-th sample, so that it can be read

/** Shows what `show` is given: a migration as the service describes it, and its history. */
export class MigrationView {
  constructor(controls = null) {
    this._head = new Head();
    this._way = new Way();
    this._trouble = element("p", { class: "trouble card", hidden: true });
    this._tiles = element("dl", { class: "tiles" });
    this._values = new Map();
    this._plots = new Plots();
    this._parts = [
      new Part("Iterations", iterationRows),
      new Part("Connections", connectionRows),
      new Part("Where the downtime went", downtimeRows),
      new Part("What limited the speed", limitRows),
      new Part("What the policy decided", decisionRows),
      new Part("What happened", eventRows),
      new Part("Measurements", sampleRows, true),
    ];
    this.node = element(
      "article",
      { "aria-labelledby": "migration-title" },
      this._head.node,
      this._way.node,
      this._trouble,
      this._tiles,
      controls,
      element("section", { "aria-label": "Plots" }, this._plots.node),
      ...this._parts.map((part) => part.node),
    );
  }

  show(info, history, heard = []) {
    this._head.show(info);
    this._way.show(info, history);
    const trouble = info.state === "running" && info.progress?.phase === "precopy" && info.progress.trouble;
    this._trouble.hidden = !trouble;
    if (trouble) setText(this._trouble, `It does not converge: ${trouble}.`);
    this._showTiles(info.state === "running" ? runningTiles(info) : endedTiles(info));
    for (const part of this._parts) part.show(info, history, heard);
    this._plots.show(history, info.settings?.downtime_ms);
  }

  _showTiles(tiles) {
    const names = tiles.map(([name]) => name).join("\n");
    if (names !== this._names) {
      this._names = names;
      this._values.clear();
      this._tiles.hidden = !tiles.length;
      this._tiles.replaceChildren(
        ...tiles.map(([name]) => {
          const value = element("dd", {});
          const note = element("dd", { class: "note" });
          this._values.set(name, [value, note]);
          return element("div", { class: "card tile" }, element("dt", {}, name), value, note);
        }),
      );
    }
    for (const [name, text, more] of tiles) {
      const [value, note] = this._values.get(name);
      setText(value, text);
      setText(note, more);
    }
  }
}

function runningTiles({ progress, settings }) {
  if (!progress || ["connecting", "waiting"].includes(progress.phase)) return []; // nothing is measured
  const limit = settings ? `limit ${millisecondsText(settings.downtime_ms)}` : "";
  const throttled = progress.throttle_percent ? `slowed down by ${progress.throttle_percent} %` : "";
  const limited = settings?.rate_limit ? `limit ${rateText(settings.rate_limit)}` : "";
  const lost = progress.lanes_lost ? `${progress.lanes_lost} connections lost` : "";
  const zeros = progress.zero_bytes ? `and ${sizeText(progress.zero_bytes)} of zeros` : "";
  return [
    ["Memory left", sizeText(leftBytes(progress)), `iteration ${progress.iteration}`],
    ["Moved", sizeText(progress.bytes_done), zeros],
    ["Rate", rateText(progress.rate), limited || lost],
    ["Guest writes", rateText(progress.dirty_rate), throttled],
    ["Expected downtime", millisecondsText(progress.expected_downtime_ms), limit],
    ["Time", timeText(progress.elapsed_s), ""],
  ];
}

function endedTiles({ report, account }) {
  const did = report ?? account;
  if (!did) return [];
  const rate = did.duration_s ? did.bytes / did.duration_s : null;
  const lost = did.lanes_lost ? `${did.lanes_lost} lost` : "";
  const zeros = did.zero_bytes ? `and ${sizeText(did.zero_bytes)} of zeros` : "";
  return [
    ...(report ? [["Downtime", millisecondsText(report.downtime_ms), "guest stood still"]] : []),
    ["Time", timeText(did.duration_s), "in all"],
    ["Moved", sizeText(did.bytes), zeros],
    ["Rate", rateText(rate), "on average"],
    ["Iterations", String(did.iterations), ""],
    ["Connections", String(did.connections), lost],
  ];
}

/** Name, state and when. */
class Head {
  constructor() {
    this._title = element("h2", { id: "migration-title", tabindex: "-1" });
    this._state = element("span", { class: "state" });
    this._about = element("p", { class: "about" });
    this._why = element("strong", {});
    this._told = element("span", {});
    this._error = element("p", { class: "error card", hidden: true }, this._why, " ", this._told);
    this.node = element(
      "header",
      { class: "head" },
      element("div", { class: "line" }, this._title, this._state),
      this._about,
      this._error,
    );
  }

  show(info) {
    setText(this._title, info.vm ?? (info.title || "A migration"));
    setText(this._state, STATES[info.state]);
    this._state.dataset.state = info.state;
    const when = info.began
      ? `${info.ended ? "from" : "since"} ${momentText(info.began)}` +
        (info.ended ? ` to ${momentText(info.ended)}` : "")
      : "";
    const where = info.url ? `${wayText(info)} ${info.url}` : "";
    const id = info.id ? `id ${info.id}` : "";
    setText(this._about, [capital(where), when, id].filter(Boolean).join(" · "));
    this._error.hidden = !info.error;
    this._error.dataset.state = info.state;
    setText(this._why, info.state === "failed" ? "Why it failed:" : "What happened:");
    setText(this._told, info.error ?? "");
  }
}

/** From source to destination: who has the VM, how far its memory is, and the steps. */
class Way {
  constructor() {
    this._ends = ["source", "destination"].map((name) => {
      const note = element("span", { class: "note" });
      return { name, note, node: element("div", { class: "end" }, element("strong", {}, capital(name)), note) };
    });
    this._bar = element("progress", { max: "1", value: "0", "aria-label": "Of the whole work, done" });
    this._share = element("span", { class: "share" });
    this._phase = element("span", { class: "phase" });
    this._sentence = element("p", { class: "owner" });
    this._steps = STEPS.map(([key, title, phases]) => ({ key, phases, node: element("li", {}, title) }));
    const [source, destination] = this._ends;
    this.node = element(
      "section",
      { class: "way card", "aria-label": "Who has the VM" },
      this._sentence,
      element(
        "div",
        { class: "ends" },
        source.node,
        element("div", { class: "middle" }, this._phase, this._bar, this._share),
        destination.node,
      ),
      element("ol", { class: "steps", "aria-label": "Steps" }, ...this._steps.map(({ node }) => node)),
    );
  }

  show(info, history) {
    const told = info.progress?.phase ?? history.phases.at(-1)?.phase;
    const owner = ownerOf(info, told);
    this.node.dataset.owner = owner;
    setText(this._sentence, ownerSentence(info, told));
    for (const { name, note, node } of this._ends) {
      node.dataset.has = { changing: "changing", settling: "unknown", unknown: "unknown" }[owner] ?? String(owner === name);
      const notes = { changing: "changing hands", settling: "may have it", unknown: "may have it" };
      setText(note, notes[owner] ?? (owner === name ? "has the VM" : "does not have it"));
    }
    const ended = info.state !== "running";
    const fraction = info.state === "done" ? 1 : (info.progress?.fraction ?? fractionOf(history));
    this._bar.value = fraction;
    setText(this._share, percentText(fraction));
    const phase = (ended ? null : info.progress?.phase) ?? reachedPhase(history);
    const at = info.state === "done" ? STEPS.length : this._steps.findIndex((one) => one.phases.includes(phase));
    const last = ended ? this._steps[at] : null; // it went no further
    const how = last ? `${STATES[info.state]} at “${last.node.textContent}”` : STATES[info.state];
    setText(this._phase, ended ? how : phaseText(phase));
    this._steps.forEach(({ node }, number) => {
      node.dataset.step = number < at ? "over" : number > at ? "to come" : ended ? "last" : "now";
      if (number === at && !ended) node.setAttribute("aria-current", "step");
      else node.removeAttribute("aria-current");
    });
  }
}

/** A section whose content is made anew when what it shows is another one. */
class Part {
  constructor(title, rows, closed = false) {
    this._rows = rows;
    this._title = title;
    this._place = element("div", {});
    this._shown = "";
    const heading = element("h3", {}, title);
    this.node = closed
      ? element("section", { class: "card part" }, element("details", {}, element("summary", {}, heading), this._place))
      : element("section", { class: "card part" }, heading, this._place);
    this.node.hidden = true;
  }

  show(...what) {
    const content = this._rows(...what);
    const key = JSON.stringify(content);
    if (key === this._shown) return;
    this._shown = key;
    this.node.hidden = content === null;
    if (content === null) return;
    const { list, columns, rows, bars } = content;
    const cells = bars ? rows.map((row, at) => withBar(row, bars.column, bars.shares[at])) : rows;
    const made = list
      ? element("ol", { class: "lines" }, ...list.map(line))
      : table(this._title, columns, cells);
    const before = this._place.firstElementChild?.scrollTop ?? 0;
    this._place.replaceChildren(scrolled(this._title, made));
    this._place.firstElementChild.scrollTop = before;
  }
}

function line([when, text]) {
  return element("li", {}, when ? element("span", { class: "when" }, when) : null, element("span", {}, text));
}

/** One cell of a row with a bar beside its number. */
function withBar(row, column, share) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", String(share));
  return row.with(column, element("span", { class: "barred" }, row[column], bar));
}

/** Bars for a column of numbers, the longest for the greatest. */
function barsOf(column, values) {
  const most = Math.max(...values) || 1;
  return { column, shares: values.map((value) => value / most) };
}

function iterationRows(_, history) {
  if (!history.iterations.length) return null;
  const columns = [
    ["Iteration", true], ["To move", true], ["Sent", true], ["Zeros", true], ["Time", true],
    ["Bandwidth", true], ["Guest writes", true], ["Expected downtime", true], ["Slowed by", true],
  ];
  const rows = history.iterations.map((one) => [
    String(one.number),
    sizeText(one.bytes),
    sizeText(one.bytes_sent),
    sizeText(one.zero_bytes),
    timeText(one.duration_s),
    rateText(one.bandwidth),
    rateText(one.dirty_rate),
    millisecondsText(one.expected_downtime_ms),
    one.throttle_percent === null ? "–" : `${one.throttle_percent} %`,
  ]);
  return { columns, rows, bars: barsOf(1, history.iterations.map(({ bytes }) => bytes)) };
}

function connectionRows({ progress }, history) {
  const names = connectionNames(history);
  const now = progress?.connections ?? movedBy(history, names);
  if (!now.length) return null;
  const sorted = [...now].sort((one, other) => names.indexOf(one.name) - names.indexOf(other.name));
  return {
    columns: [["Connection"], ["Rate", true], ["Moved", true]],
    rows: sorted.map(({ name, rate, bytes }) => [laneText(name), rateText(rate), sizeText(bytes)]),
    bars: barsOf(2, sorted.map(({ bytes }) => bytes)),
  };
}

/** What each connection moved, and how fast on average: rates are averages since the sample before. */
function movedBy({ samples }, names) {
  const seconds = samples.at(-1)?.at_s;
  return names.map((name) => {
    let before = 0;
    let bytes = 0;
    for (const { at_s, connections } of samples) {
      bytes += (connections[name] ?? 0) * (at_s - before);
      before = at_s;
    }
    return { name, bytes, rate: seconds ? bytes / seconds : null };
  });
}

function limitRows({ report, account }) {
  const limited = (report ?? account)?.limited_by;
  if (!limited) return null;
  const waits = Object.entries(limited.seconds).filter(([, seconds]) => seconds > 0);
  waits.sort(([, one], [, other]) => other - one);
  const total = waits.reduce((sum, [, seconds]) => sum + seconds, 0);
  return {
    columns: [["The time of all connections went to"], ["Share", true]],
    rows: waits.map(([cause, seconds]) => [LIMITS[cause] ?? cause, percentText(seconds / total)]),
    bars: barsOf(1, waits.map(([, seconds]) => seconds / total)),
  };
}

function downtimeRows({ report }) {
  if (!report?.downtime) return null;
  const stages = STAGES.filter(([key]) => key in report.downtime);
  return {
    columns: [["Stage"], ["Time", true]],
    rows: stages.map(([key, title]) => [title, `${report.downtime[key].toFixed(1)} ms`]),
    bars: barsOf(1, stages.map(([key]) => report.downtime[key])),
  };
}

function decisionRows(_, history) {
  const decided = history.iterations.filter(({ decision }) => decision);
  if (!decided.length) return null;
  return { list: decided.map(({ number, decision }) => [`after ${number}`, capital(humanised(decision))]) };
}

function eventRows(info, history, heard) {
  const ended = info.state !== "running";
  const text = (phase) => (phase === "failed" && ended ? STATES[info.state] : phaseText(phase));
  const events = history.phases.map(({ phase, at_s }) => [at_s, capital(text(phase))]);
  events.push(...heard);
  events.sort(([one], [other]) => one - other);
  const lines = events.map(([at, text]) => [timeText(at), text]);
  const notes = [...(info.notes ?? []), ...((info.report ?? info.account)?.warnings ?? [])];
  lines.push(...notes.map((note) => ["", capital(note)]));
  return lines.length ? { list: lines } : null;
}

function sampleRows(_, { samples }) {
  if (!samples.length) return null;
  const every = Math.ceil(samples.length / ROWS);
  const chosen = samples.filter((_one, at) => at % every === 0 || at === samples.length - 1);
  return {
    columns: [
      ["Time", true], ["Iteration", true], ["Memory left", true], ["Moved", true], ["Rate", true],
      ["Bandwidth", true], ["Guest writes", true], ["Expected downtime", true],
    ],
    rows: chosen.map((one) => [
      timeText(one.at_s),
      String(one.iteration),
      sizeText(one.left_bytes),
      sizeText(one.bytes_done),
      rateText(one.rate),
      rateText(one.bandwidth),
      rateText(one.dirty_rate),
      millisecondsText(one.expected_downtime_ms),
    ]),
  };
}
