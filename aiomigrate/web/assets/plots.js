// The plots of a migration over its time. They are pictures: the tables beside them say the same.
//
// uPlot draws on a canvas, which knows no style sheet: colours are read from the page's variables,
// and plots are made anew when the reader changes between light and dark.

/* global uPlot */

import { averaged, connectionNames, iterationStarts, laneText } from "./history.js";
import { millisecondsText, rateText, sizeText, timeText } from "./format.js";
import { element, setText } from "./dom.js";

const HEIGHT = 190;
const LANES_APART = 8; // more cannot be told apart: then the fastest, the median and the slowest
const MARK_WIDTH = 24; // of a dashed line with its number, in CSS pixels
const COLOURS = 8; // --series-1 to --series-8
const BINARY = Array.from({ length: 60 }, (_, power) => 2 ** power);
const SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];

/** What each plot shows of some samples: its series are `[label, colour, values, filled]`. */
const KINDS = [
  {
    title: "Memory left, by iteration",
    about: "What the current iteration still has to move; dashed lines are where iterations begin.",
    text: sizeText,
    increments: BINARY,
    marked: true,
    series: (samples) => [["left", 1, samples.map(leftOf), true]],
  },
  {
    title: "Rate, by connection",
    about: "How fast each connection moves memory.",
    text: rateText,
    increments: BINARY,
    averaged: true,
    series: laneSeries,
  },
  {
    title: "Dirty rate against bandwidth",
    about: "It converges while memory moves faster than it is written.",
    text: rateText,
    increments: BINARY,
    averaged: true,
    series: (samples) => [
      ["memory moves", 1, samples.map(({ rate, bytes_done }) => (bytes_done ? rate : null)), true],
      ["guest writes", 2, column(samples, "dirty_rate")],
    ],
  },
  {
    title: "Expected downtime",
    about: "How long the guest would stand still if it were paused then.",
    text: millisecondsText,
    series: (samples, limit) => [
      ["expected", 1, column(samples, "expected_downtime_ms")],
      ...(limit ? [["limit now", 2, samples.map((one) => (one.expected_downtime_ms === null ? null : limit))]] : []),
    ],
  },
];

function column(samples, name) {
  return samples.map((sample) => sample[name]);
}

/** Before any memory is moved it is not known how much there is. */
function leftOf({ left_bytes, bytes_done }) {
  return left_bytes || bytes_done ? left_bytes : null;
}

function laneSeries(samples) {
  const names = connectionNames({ samples });
  // One that is not named has moved nothing.
  const rates = (name) => samples.map(({ connections }) => connections[name] ?? 0);
  if (names.length <= LANES_APART) {
    return names.map((name, at) => [laneText(name), at + 1, rates(name)]);
  }
  const sorted = samples.map(({ connections }) =>
    names.map((name) => connections[name] ?? 0).sort((one, other) => one - other),
  );
  const at = (share) => sorted.map((one) => one[Math.round(share * (one.length - 1))]);
  return [
    [`fastest of ${names.length}`, 3, at(1)],
    ["median", 1, at(0.5)],
    ["slowest", 2, at(0)],
  ];
}

/** The plots of one migration, in `node`. */
export class Plots {
  constructor() {
    this.node = element("div", { class: "plots" });
    this._plots = KINDS.map((kind) => new Plot(kind));
    this.node.append(...this._plots.map((plot) => plot.node));
    this._shown = null;
    this._schemes = matchMedia("(prefers-color-scheme: dark)");
    this._repaint = () => this._plots.forEach((plot) => plot.forget());
    this._widths = new ResizeObserver(() => this._draw());
    this._schemes.addEventListener("change", () => {
      this._repaint();
      this._draw();
    });
    this._widths.observe(this.node);
  }

  show(history, limit) {
    this._shown = [history, limit];
    this._draw();
  }

  _draw() {
    if (this._shown === null || !this.node.isConnected) return;
    for (const plot of this._plots) plot.draw(...this._shown);
  }
}

class Plot {
  constructor(kind) {
    this._kind = kind;
    this._place = element("div", { class: "canvas", "aria-hidden": "true" });
    this._nothing = element("p", { class: "nothing" });
    this.node = element(
      "figure",
      { class: "card plot" },
      element("figcaption", {}, element("h3", {}, kind.title), element("p", {}, kind.about)),
      this._place,
      this._nothing,
    );
    this.forget();
  }

  /** Colours, or the set of series, are others: the next drawing makes it anew. */
  forget() {
    this._plot?.destroy();
    this._plot = null;
    this._labels = "";
  }

  draw(history, limit) {
    const samples = this._kind.averaged ? averaged(history.samples) : history.samples;
    const series = this._kind.series(samples, limit);
    const known = series.some(([, , values]) => values.some((value) => value !== null));
    this._place.hidden = !known;
    this._nothing.hidden = known;
    this._ended = ["done", "failed"].includes(history.phases.at(-1)?.phase);
    setText(this._nothing, this._ended ? "Nothing was measured." : "Nothing measured yet.");
    if (!known) return;
    const labels = series.map(([label]) => label).join("\n");
    this._marks = this._kind.marked ? iterationStarts(history) : [];
    const width = Math.floor(this._place.clientWidth);
    if (labels !== this._labels) {
      this.forget();
      this._labels = labels;
    }
    const data = [column(samples, "at_s"), ...series.map(([, , values]) => values)];
    if (this._plot === null) {
      this._plot = new uPlot(this._options(series, width), data, this._place);
      return;
    }
    if (this._plot.width !== width) this._plot.setSize({ width, height: HEIGHT });
    this._plot.setData(data);
  }

  _options(series, width) {
    const { text, increments } = this._kind;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const axis = {
      stroke: colour("quiet"),
      grid: { stroke: colour("grid"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    return {
      width,
      height: HEIGHT,
      scales: { x: { time: false, range: (_, _low, high) => [0, high] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, size: 30, incrs: SECONDS, space: 60, values: (_, ticks) => ticks.map((at) => (at ? timeText(at) : "0")) },
        {
          ...axis,
          size: 76,
          ...(increments ? { incrs: increments } : {}),
          values: (_, ticks) => ticks.map(text),
        },
      ],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      legend: { markers: { width: 0, fill: (plot, at) => plot.series[at].stroke(plot, at) } },
      series: [
        { label: "time", value: (_, value) => timeText(value) },
        ...series.map(([label, number, , filled]) => ({
          label,
          stroke: colour(`series-${((number - 1) % COLOURS) + 1}`),
          fill: filled ? colour("fill") : undefined,
          width: 2,
          points: { show: false },
          spanGaps: true,
          // Under the cursor, or else the newest while there are newer ones to come.
          value: (plot, value, at) => (value !== null ? text(value) : this._ended ? "" : text(plot.data[at].at(-1))),
        })),
      ],
      hooks: { drawClear: [(plot) => this._mark(plot, colour("mark"))] },
    };
  }

  /** A dashed line where each iteration began. */
  _mark(plot, colour) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour;
    ctx.setLineDash([4, 4]);
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "left";
    let free = -Infinity; // where the next line, and the next number, have room
    for (const [number, at] of this._marks.slice(1)) {
      const x = Math.round(plot.valToPos(at, "x", true));
      if (x < free) continue;
      free = x + MARK_WIDTH * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillText(String(number), x + 4 * devicePixelRatio, bbox.top + 9 * devicePixelRatio);
    }
    ctx.restore();
  }
}
