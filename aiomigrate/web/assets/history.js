// The history of a migration as the page keeps it: what the service told, and what came since by events.

import { leftBytes } from "./words.js";

const KEPT = 2000; // samples: more than the width of a screen; the service's own are fewer
const HEARD = 100; // events that are kept of a migration: arbitrary

const SMOOTH_S = 0.5;
const SMOOTH_COUNT = 100;

export function emptyHistory() {
  return { samples: [], iterations: [], phases: [] };
}

/** As the service, or a report, tells it. */
export function historyOf({ report, account }) {
  return (report ?? account)?.history ?? emptyHistory();
}

/** One sample of the engine's history, from a progress event. */
export function sampleOf(progress) {
  return {
    at_s: progress.elapsed_s,
    phase: progress.phase,
    iteration: progress.iteration,
    left_bytes: leftBytes(progress),
    bytes_done: progress.bytes_done,
    rate: progress.rate,
    bandwidth: progress.bandwidth,
    dirty_rate: progress.dirty_rate,
    expected_downtime_ms: progress.expected_downtime_ms,
    throttle_percent: progress.throttle_percent,
    connections: Object.fromEntries(progress.connections.map(({ name, rate }) => [name, rate])),
  };
}

/** `history` with this progress behind its samples, unless it is there already. */
export function extended(history, progress) {
  const last = history.samples.at(-1);
  if (last && last.at_s >= progress.elapsed_s) return history;
  const samples = [...history.samples, sampleOf(progress)];
  return { ...history, samples: samples.slice(-KEPT) };
}

/** Samples whose rates are averages over half a second at least, as an eye follows, and no more of
 * them than a plot can show: single chunks, which come and go on each connection, are none of a rate.
 */
export function averaged(samples) {
  const least = Math.max(SMOOTH_S, (samples.at(-1)?.at_s ?? 0) / SMOOTH_COUNT);
  const groups = [];
  let begin = 0; // of the group that is filled: where the one before ended
  for (const sample of samples) {
    const group = groups.at(-1);
    if (group && group.at(-1).at_s - begin < least) {
      group.push(sample);
      continue;
    }
    begin = group?.at(-1).at_s ?? 0;
    groups.push([sample]);
  }
  // What is left at the end is too short to be averaged for itself.
  const [last] = groups.slice(-1);
  if (groups.length > 1 && last.at(-1).at_s - begin < least) groups.at(-2).push(...groups.pop());
  return groups.map((group, at) => ({
    ...group.at(-1),
    ...averageOf(group, at ? groups[at - 1].at(-1).at_s : 0),
  }));
}

function averageOf(group, before) {
  const seconds = group.at(-1).at_s - before;
  if (!seconds) return {};
  let moved = 0;
  const byName = {};
  for (const { at_s, rate, connections } of group) {
    moved += rate * (at_s - before);
    for (const [name, one] of Object.entries(connections)) {
      byName[name] = (byName[name] ?? 0) + one * (at_s - before);
    }
    before = at_s;
  }
  const connections = Object.fromEntries(Object.entries(byName).map(([name, bytes]) => [name, bytes / seconds]));
  return { rate: moved / seconds, connections };
}

/** What is in no history, and known to those who were there only: `[at_s, text]` by migration. */
export class Heard {
  constructor() {
    this._of = new Map();
  }

  add(id, at_s, text) {
    this._of.set(id, [...this.of(id), [at_s, text]].slice(-HEARD));
  }

  of(id) {
    return this._of.get(id) ?? [];
  }

  /** Forget what is about others: a page may stay open for months. */
  keep(ids) {
    const kept = new Set(ids);
    for (const id of this._of.keys()) if (!kept.has(id)) this._of.delete(id);
  }
}

/** The names of all connections in the samples, lane 2 before lane 10. */
export function connectionNames(history) {
  const names = new Set();
  for (const sample of history.samples) {
    for (const name of Object.keys(sample.connections)) names.add(name);
  }
  return [...names].sort((one, other) => one.length - other.length || (one < other ? -1 : 1));
}

/** A destination names lanes after the peer's address, of which only the port differs. */
export function laneText(name) {
  const port = /:(\d+)$/.exec(name);
  return port ? `lane :${port[1]}` : name;
}

/** The last phase before the end, whatever that was. */
export function reachedPhase(history) {
  return history.phases.findLast(({ phase }) => phase !== "failed")?.phase ?? "connecting";
}

/** Of the work that was known at the last sample, done: where nothing else tells. */
export function fractionOf({ samples }) {
  const last = samples.at(-1);
  return last?.bytes_done ? last.bytes_done / (last.bytes_done + last.left_bytes) : 0;
}

/** When each iteration began: `[number, at_s]`, from the samples. */
export function iterationStarts(history) {
  const starts = [];
  for (const sample of history.samples) {
    if (sample.phase !== "precopy" && sample.phase !== "switchover") continue;
    if (sample.iteration !== starts.at(-1)?.[0]) starts.push([sample.iteration, sample.at_s]);
  }
  return starts;
}
