// Texts as points: the first two principal components of their vectors.

import { h, s } from "./dom.js";
import { percent } from "./format.js";

const HEIGHT = 340;
const MARGIN = 28;
/** Most points for which labels are the texts; with more, labels are their numbers. */
const NAMED = 20;
const LINE = 16;
/** Pixels of a character, about. */
const WIDE = 6.4;
/** Pixels between a point and its label. */
const GAP = 10;

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

/** Labels next to their points, without overlaps if possible. */
function spread(placed, texts, width) {
  const taken = placed.map(({ x, y }) => ({ start: x - 7, end: x + 7, y }));
  return [...placed]
    .sort((a, b) => a.y - b.y)
    .map((point) => {
      const places = candidates(point, placed.length > NAMED ? String(point.index + 1) : texts[point.index], width);
      const free = places.find((place) => !taken.some((other) => overlap(place, other)));
      const place = free ?? places[0];
      taken.push(place);
      return { ...place, index: point.index, x: point.x + (place.anchor === "end" ? -GAP : GAP), y: place.y + 4 };
    });
}

/** Places of a label: the side with more space first; level with its point before above or below. */
function candidates({ x, y }, text, width) {
  const sides = (x > width / 2 ? ["end", "start"] : ["start", "end"]).map((anchor) => {
    const room = (anchor === "end" ? x : width - x) - GAP - 4;
    const label = shorten(text, Math.min(Math.floor(room / WIDE), 34));
    const long = label.length * WIDE;
    const start = anchor === "end" ? x - GAP - long : x + GAP;
    return { anchor, label, start, end: start + long };
  });
  // The other side only if it does not cut off more of the text.
  const fit = sides.filter((side) => side.label.length >= sides[0].label.length);
  return [0, LINE, -LINE, 2 * LINE].flatMap((shift) => fit.map((side) => ({ ...side, y: y + shift })));
}

const overlap = (a, b) => a.start < b.end && b.start < a.end && Math.abs(a.y - b.y) < LINE - 3;
const shorten = (text, most) => (text.length <= most ? text : `${text.slice(0, Math.max(most - 1, 1)).trimEnd()}…`);
