// Texts as points: the first two principal components of their vectors.

import { h, s } from "./dom.js";
import { percent } from "./format.js";

const HEIGHT = 340;
const MARGIN = 28;
/** Up to so many points, labels are the texts; past it, their numbers. */
const NAMED = 20;
const LINE = 16;
/** Pixels of a character, about. */
const WIDE = 6.6;

/** A figure that redraws itself when its width changes. */
export function scatter(texts, { points, shares }, light) {
  const svg = s("svg", { class: "scatter", role: "group", "aria-label": "Texts as points; those that mean the same lie together", height: HEIGHT });
  const caption = `The plane keeps ${percent(shares[0] + shares[1])} of the differences: ${percent(shares[0])} across, ${percent(shares[1])} up.`;
  const figure = h("figure", { class: "scatter-figure" }, h("figcaption", {}, h("h3", {}, "Map")), svg, h("p", { class: "readout" }, caption));
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== drawn) draw(svg, (drawn = width), texts, points, light);
  }).observe(figure);
  return figure;
}

function draw(svg, width, texts, points, light) {
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const across = scale(points.map(([x]) => x), MARGIN, width - MARGIN);
  const up = scale(points.map(([, y]) => y), HEIGHT - MARGIN, MARGIN);
  const placed = points.map(([x, y], index) => ({ index, x: across(x), y: up(y) }));
  const marks = placed.map(({ index, x, y }) =>
    s("circle", { cx: x, cy: y, r: 5, "data-text": index, tabindex: "0", role: "img", "aria-label": `${index + 1}: ${texts[index]}` }, s("title", {}, texts[index])),
  );
  const labels = spread(placed, texts, width).map(({ index, x, y, anchor, label }) =>
    s("text", { x, y, "text-anchor": anchor, "data-text": index, "aria-hidden": "true" }, label),
  );
  const axes = s("path", { class: "axes", d: `M${across(0)} 8V${HEIGHT - 8}M8 ${up(0)}H${width - 8}` });
  svg.replaceChildren(axes, ...labels, ...marks);
  const lit = (event) => light([Number(event.target.dataset.text)]);
  for (const mark of marks) {
    mark.addEventListener("pointerenter", lit);
    mark.addEventListener("focus", lit);
    mark.addEventListener("pointerleave", () => light([]));
    mark.addEventListener("blur", () => light([]));
  }
}

/** From values to pixels; zero has a place too. */
function scale(values, from, to) {
  const low = Math.min(0, ...values);
  const high = Math.max(0, ...values);
  const span = high - low || 1;
  return (value) => Math.round((from + ((value - low) / span) * (to - from)) * 10) / 10;
}

/** Labels on the side with more room, moved down where they would lie on another. */
function spread(placed, texts, width) {
  const taken = [];
  return [...placed]
    .sort((a, b) => a.y - b.y)
    .map(({ index, x, y }) => {
      const left = x > width / 2;
      const room = Math.floor((left ? x - 12 : width - x - 12) / WIDE);
      const label = placed.length > NAMED ? String(index + 1) : shorten(texts[index], Math.min(room, 34));
      const [start, end] = left ? [x - 10 - label.length * WIDE, x - 10] : [x + 10, x + 10 + label.length * WIDE];
      let top = y + 4;
      for (const other of taken) {
        if (start < other.end && other.start < end && Math.abs(other.top - top) < LINE) top = other.top + LINE;
      }
      taken.push({ start, end, top });
      return { index, x: left ? x - 10 : x + 10, y: top, anchor: left ? "end" : "start", label };
    });
}

const shorten = (text, most) => (text.length <= most ? text : `${text.slice(0, Math.max(most - 1, 1)).trimEnd()}…`);
