// What a migration's state means, in sentences: who has the VM, what it does, what a button would do.

import { millisecondsText, rateText, sizeText } from "./format.js";

/** The steps that a person follows, and the engine's phases in each. */
export const STEPS = [
  ["connecting", "Connect", ["connecting", "waiting"]],
  ["precopy", "Move memory", ["precopy"]],
  ["switchover", "Switch over", ["switchover"]],
  ["completing", "Hand over", ["completing", "serving"]],
  ["done", "Done", ["done"]],
];

const PHASES = {
  connecting: "connecting",
  waiting: "waiting for a source",
  precopy: "moving memory",
  switchover: "switching over: the guest is paused",
  completing: "handing over",
  serving: "the guest runs at the destination, its memory follows",
  done: "done",
  failed: "failed",
};

export const STATES = {
  running: "running",
  done: "done",
  failed: "failed",
  cancelled: "cancelled",
  unknown: "outcome unknown",
};

export function phaseText(phase) {
  return PHASES[phase] ?? phase;
}

/** Which way it goes, or went: "sending to", "received at". */
export function wayText({ direction, state }) {
  const [now, done, at] = direction === "receive" ? ["receiving", "received", "at"] : ["sending", "sent", "to"];
  if (state === "running") return `${now} ${at}`;
  return state === "done" ? `${done} ${at}` : `was to be ${done} ${at}`;
}

/** "source", "destination", "changing", "settling" or "unknown": who may run the guest now. */
export function ownerOf(info, phase = info.progress?.phase) {
  if (info.owner) return info.owner;
  switch (phase) {
    case "completing":
      return "changing";
    case "serving":
    case "done":
      return "destination";
    case "failed":
      return "settling";
    default:
      return "source";
  }
}

/** Who has the VM, as a plain sentence. */
export function ownerSentence(info, phase = info.progress?.phase) {
  const vm = info.vm ?? "the VM";
  switch (ownerOf(info, phase)) {
    case "unknown":
      return (
        `It is not known who has ${vm}: it is paused at the source and may be running at the ` +
        "destination; it never runs at both. Find out at the destination before anybody resumes it " +
        "at the source; “aiomigrate outcome” tells what is known."
      );
    case "settling":
      return `It has ended early. Who has ${vm} is told once what was begun has been undone.`;
    case "changing":
      return (
        `${capital(vm)} is changing hands: it is paused at the source until the destination has said ` +
        "that it has it. It never runs at both."
      );
    case "destination":
      if (!info.report) return `The destination has ${vm}.`;
      return info.report.running
        ? `The destination has ${vm}, and the guest runs there.`
        : `The destination has ${vm}, paused as it was at the source.`;
    default:
      if (info.state !== "running") {
        return `The source has ${vm}, as if nothing had been: ${afterwards(info)}.`;
      }
      if (phase === "waiting") return `No source has connected yet: ${vm} comes, once one has.`;
      return `The source has ${vm}. ${meanwhile(info, phase)}`;
  }
}

/** What the guest does at the source. A destination, and a report, do not know whether it runs. */
function meanwhile({ runs }, phase) {
  if (runs === false) return "Its guest does not run there.";
  if (phase === "switchover") return "Its guest is paused while the rest of its memory is sent.";
  return runs
    ? "Its guest goes on there until the switchover."
    : "A guest that runs there goes on there until the switchover.";
}

function afterwards({ runs }) {
  if (runs === false) return "its guest does not run there, as before";
  return runs ? "its guest goes on there" : "a guest that ran there goes on there";
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** Bytes of this iteration that are still to be moved; null while that is not known. */
export function leftBytes(progress) {
  return Math.max(0, progress.iteration_bytes - progress.iteration_bytes_done);
}

/** How long the guest would stand still if it were paused now, in ms; null if that is not known.
 *
 * What moves then is the rest of this iteration and what the guest has written since it began.
 */
export function expectedPause(progress) {
  const rate = progress.rate || progress.bandwidth;
  if (!rate) return null;
  const written = ((progress.dirty_rate ?? 0) * progress.iteration_bytes_done) / rate;
  const again = Math.min(written, progress.total_bytes || written);
  return (1000 * (leftBytes(progress) + again)) / rate;
}

const FAILED = "Too late: what was begun is being undone.";

/** What can be done with a running migration: per action whether it can, and what it means. */
export function actions(info) {
  const { progress, direction, state } = info;
  const phase = progress?.phase ?? "connecting";
  const sends = direction === "send";
  const before = state === "running" && ["connecting", "waiting", "precopy"].includes(phase);
  const stops = before || (state === "running" && phase === "switchover");
  return {
    switchOver: { offered: sends, possible: sends && before, sentence: switchOverSentence(info, phase) },
    tune: { offered: sends, possible: sends && before, sentence: tuneSentence(info, phase) },
    cancel: { offered: true, possible: stops, sentence: cancelSentence(info, phase, stops) },
  };
}

function switchOverSentence({ progress, vm, runs }, phase) {
  if (phase === "failed") return FAILED;
  if (runs === false) return "The guest does not run: this sends the rest of its memory without a rate limit.";
  if (phase === "connecting") return `Pauses ${vm} as soon as its memory is being sent.`;
  if (phase !== "precopy") return "The guest is paused already.";
  const pause = expectedPause(progress);
  // How fast the guest writes is known once an iteration has ended.
  const about = progress.dirty_rate === null ? "at least" : "about";
  const time =
    pause === null
      ? "how long is not known yet"
      : `${about} ${millisecondsText(pause)} at the present rate`;
  const first = progress.iteration === 0 ? " Most of its memory may not have been sent yet." : "";
  return `Pauses the guest now, until the rest has moved: ${time}.${first}`;
}

function tuneSentence({ runs }, phase) {
  if (phase === "failed") return FAILED;
  if (["switchover", "completing", "serving"].includes(phase)) {
    return "Too late: the guest is paused, and nothing slows the rest down.";
  }
  if (runs === false) return "Changes the rate limit, and what would hold for a guest that runs.";
  return "Changes the downtime limit, the rate limit or how far the guest may be slowed down; the guest goes on.";
}

function cancelSentence({ direction, progress, runs }, phase, possible) {
  if (phase === "failed") return FAILED;
  if (!possible) return "Too late: the VM is changing hands.";
  const moved = progress?.bytes_done ? `; ${sizeText(progress.bytes_done)} were moved in vain` : "";
  if (direction === "receive") {
    return `Ends it: what has come is thrown away here, and the source keeps the VM${moved}.`;
  }
  if (runs === false) return `Ends it: the source keeps the VM as it is${moved}.`;
  return phase === "switchover"
    ? `Ends it: the source keeps the VM, and its guest, paused now, goes on there${moved}.`
    : `Ends it: the source keeps the VM, and its guest goes on there${moved}.`;
}

/** What an operator has changed: the fields of a `migration-tuned` event. */
export function changesSentence(changes) {
  const said = {
    downtime_ms: (value) => `the downtime limit is ${millisecondsText(Number(value))}`,
    rate_limit: (value) => (Number(value) ? `the rate limit is ${rateText(Number(value))}` : "there is no rate limit"),
    throttle_cap_percent: (value) => `the guest may be slowed down by ${value} %`,
    switch_over_now: () => "the guest is paused now",
  };
  const known = Object.entries(changes).filter(([name]) => name in said);
  return `Changed: ${known.map(([name, value]) => said[name](value)).join(", ")}`;
}

/** The engine's stages of the downtime, in their order. */
export const STAGES = [
  ["pause_ms", "Pausing the guest"],
  ["last_pass_ms", "Moving the last memory"],
  ["capture_ms", "Capturing its state"],
  ["hand_over_ms", "Handing over disks and network"],
  ["restore_ms", "Restoring at the destination"],
  ["waiting_ms", "Resuming at the destination"],
];

/** What a source's connections can have waited for, as the engine calls it. */
export const LIMITS = {
  rate_limit: "The rate limit",
  memory: "Memory or disk of the source",
  link: "The network",
  destination: "The destination, which read or answered slowly",
  processor: "The processor of the source",
  between_iterations: "What happens between iterations, with nothing to send",
};
