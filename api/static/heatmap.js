// Similarity of every pair as a table with coloured cells.

import { h, write } from "./dom.js";

/** Most columns for which cells have space for their number. */
const READABLE = 12;
/** From this value on, a cell is so dark (in dark mode: so light) that its number needs the other colour. */
const STRONG = 0.62;

/** A figure; `light(indices)` marks texts in all figures. */
export function heatMap(texts, matrix, light) {
  const readout = h("p", { class: "readout" }, "Cosine similarity; point at a cell to read it.");
  const dense = texts.length > READABLE;
  const head = texts.map((text, j) => {
    const named = !dense || j === 0 || j % 5 === 4;
    return h("th", { scope: "col", title: text }, h("span", { class: named ? null : "hidden" }, String(j + 1)));
  });
  const rows = texts.map((text, i) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", title: text, "data-text": i }, h("b", {}, String(i + 1)), " ", h("span", {}, text)),
      ...matrix[i].map((value, j) => cell(value, i, j)),
    ),
  );
  const table = h(
    "table",
    { class: dense ? "heat dense" : "heat" },
    h("caption", { class: "hidden" }, "Cosine similarity of every pair of texts"),
    h("thead", {}, h("tr", {}, h("td"), ...head)),
    h("tbody", {}, ...rows),
  );
  table.addEventListener("pointerover", (event) => {
    const { row, column } = event.target.closest("td[data-row]")?.dataset ?? {};
    if (row === undefined) return;
    light([Number(row), Number(column)]);
    write(readout, `${matrix[row][column].toFixed(3)}: ${texts[row]} / ${texts[column]}`);
  });
  table.addEventListener("pointerleave", () => light([]));
  const legend = h("p", { class: "legend", "aria-hidden": "true" }, "0", h("i"), "1");
  return h("figure", { class: "heat-figure" }, h("figcaption", {}, h("h3", {}, "Similarity"), legend), h("div", { class: "scroll" }, table), readout);
}

function cell(value, row, column) {
  const made = h("td", { "data-row": row, "data-column": column }, value.toFixed(2).replace(/^(-?)0\./, "$1."));
  const shade = Math.max(0, Math.min(1, value));
  made.style.setProperty("--shade", `${(shade * 100).toFixed(1)}%`);
  made.classList.toggle("strong", shade > STRONG);
  return made;
}
