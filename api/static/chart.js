// One figure: a number, a line of text, and the last minutes as an area; optionally, above the area,
// the line of another value that is never lower.

import { h, mark, s, write } from "./dom.js";
import { ago } from "./format.js";

const HEIGHT = 100;

/** Fills an <article>. Left and right arrows, or the pointer, read single values. */
export class Figure {
  /** `format` gives a value with its unit; `most` fixes the top of the scale. */
  constructor(article, { format, most = null }) {
    this.name = article.querySelector("h2").textContent;
    this.format = format;
    this.most = most;
    this.value = h("b");
    this.unit = h("span");
    this.note = h("p", { class: "note" });
    this.area = s("path", { class: "area" });
    this.line = s("path", { class: "line" });
    this.upper = s("path", { class: "upper" });
    this.cursor = s("path", { class: "cursor" });
    this.svg = s("svg", { preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.upper, this.line, this.cursor);
    this.top = h("span", { class: "top" });
    this.readout = h("output", { class: "readout" });
    this.chart = h(
      "div",
      { class: "chart", role: "group", "aria-roledescription": "chart", tabindex: "0" },
      this.svg,
      this.top,
      this.readout,
      h("span", { class: "then" }, "5 min ago"),
      h("span", { class: "now" }, "now"),
    );
    article.append(h("p", { class: "value" }, this.value, " ", this.unit), this.note, this.chart);
    this.values = [];
    this.above = [];
    this.at = null;
    this.chart.addEventListener("pointermove", (event) => this.#point(event));
    this.chart.addEventListener("pointerleave", () => this.#read(null));
    this.chart.addEventListener("blur", () => this.#read(null));
    this.chart.addEventListener("keydown", (event) => this.#step(event));
  }

  /** Show a number, its unit, a line of text, and a value for each step up to now. */
  show({ value, unit, note, values, above = [], step }) {
    write(this.value, value);
    write(this.unit, unit);
    write(this.note, note);
    this.values = values;
    this.above = above;
    this.step = step;
    this.#draw();
  }

  #draw() {
    const known = this.values.filter((value) => value !== null);
    const highest = Math.max(0, ...known, ...this.above);
    const top = this.most ?? ceiling(highest);
    const last = this.values.length - 1;
    const y = (value) => HEIGHT - (Math.min(value / top, 1) || 0) * HEIGHT;
    const path = (run) => run.map(([x, value]) => `${x} ${y(value).toFixed(2)}`).join("L");
    const lines = (runs) => runs.map((run) => `M${path(run)}`).join("");
    const runs = stretches(this.values);
    mark(this.svg, "viewBox", `0 0 ${last} ${HEIGHT}`);
    mark(this.line, "d", lines(runs));
    mark(this.upper, "d", lines(stretches(this.above)));
    mark(this.area, "d", runs.map((run) => `M${run[0][0]} ${HEIGHT}L${path(run)}L${run.at(-1)[0]} ${HEIGHT}Z`).join(""));
    write(this.top, known.length ? this.format(top) : "");
    mark(
      this.chart,
      "aria-label",
      known.length
        ? `${this.name}, last five minutes: now ${this.#text(last)}, highest ${this.format(highest)}`
        : `${this.name}, last five minutes: nothing yet`,
    );
    this.#read(this.at);
  }

  #point(event) {
    const box = this.svg.getBoundingClientRect();
    this.#read(Math.round(((event.clientX - box.left) / box.width) * (this.values.length - 1)));
  }

  #step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.values.length) return;
    event.preventDefault();
    this.#read((this.at ?? this.values.length) + move);
  }

  #read(at) {
    const last = this.values.length - 1;
    this.at = at === null || last < 0 ? null : Math.max(0, Math.min(last, at));
    mark(this.cursor, "d", this.at === null ? null : `M${this.at} 0V${HEIGHT}`);
    write(this.readout, this.at === null ? "" : `${this.#text(this.at)}, ${ago((last - this.at) * this.step)}`);
  }

  #text(index) {
    const value = this.values[index];
    if (value === null) return "nothing";
    const above = this.above[index] ?? null;
    return above === null ? this.format(value) : `${this.format(value)} to ${this.format(above)}`;
  }
}

/** The parts of a series without gaps, as [index, value]; a lone value becomes a short line. */
function stretches(values) {
  const found = [];
  let run = null;
  values.forEach((value, index) => {
    if (value === null) run = null;
    else if (run) run.push([index, value]);
    else found.push((run = [[index, value]]));
  });
  for (const one of found) if (one.length === 1) one.unshift([Math.max(one[0][0] - 0.4, 0), one[0][1]]);
  return found;
}

/** The next round number: 1, 2 or 5 times a power of ten. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((factor) => factor * power >= value) * power;
}
