// Sizes, rates and times as people read them, in the words of the command line (aiomigrate/cli/text.py).

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const NOTHING = "–";

/** `1.5 GiB`: three digits at the most, in the unit that fits. */
export function sizeText(bytes) {
  if (bytes === null || bytes === undefined) return NOTHING;
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(unit === 0 || value >= 99.95 ? 0 : 1)} ${UNITS[unit]}`;
}

/** `812 MiB/s`. */
export function rateText(rate) {
  return rate === null || rate === undefined ? NOTHING : `${sizeText(rate)}/s`;
}

/** `850 ms`, `3.2 s`, `4 min 10 s`. */
export function timeText(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NOTHING;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export function millisecondsText(ms) {
  return ms === null || ms === undefined ? NOTHING : timeText(ms / 1000);
}

export function percentText(fraction) {
  return `${Math.floor(fraction * 100)} %`;
}

/** Bare numbers of bytes in a sentence of the engine, made readable. */
export function humanised(sentence) {
  return sentence
    .replace(/\b(\d+) bytes\/s/g, (_, number) => rateText(Number(number)))
    .replace(/\b(\d+) bytes\b/g, (_, number) => sizeText(Number(number)))
    .replace(/\b(\d+) ms\b/g, (_, number) => millisecondsText(Number(number)));
}

/** When something began: the time alone if that was today. */
export function sinceText(iso) {
  const at = new Date(iso);
  const today = at.toDateString() === new Date().toDateString();
  return today ? at.toLocaleTimeString() : at.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** A moment of the service's clock in the reader's own time. */
export function momentText(iso) {
  return new Date(iso).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}
