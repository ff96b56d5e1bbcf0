// The box for texts: a job encodes them, and the figures of their similarity are drawn here.

import { principal, similarities } from "./algebra.js";
import { ask, Problem } from "./client.js";
import { h, write } from "./dom.js";
import { count } from "./format.js";
import { heatMap } from "./heatmap.js";
import { scatter } from "./scatter.js";

/** Most texts: more would be illegible. */
const MOST = 64;
const WAIT = 20;
const EXAMPLES = [
  "How do I reset my password?",
  "I forgot my login, what now?",
  "Wie setze ich mein Passwort zurück?",
  "Where is my parcel?",
  "My order has not arrived yet",
  "Track a shipment",
  "A recipe for lentil soup",
  "How long do lentils have to cook?",
];

/** Sets up the form; `refused(problem)` is called for an answer that requires a key. */
export function installCompare(form, place, refused) {
  const box = form.elements.texts;
  const hint = form.querySelector("#texts-hint");
  const button = form.querySelector("button");
  const error = form.querySelector(".error");
  box.value = EXAMPLES.join("\n");

  const texts = () => box.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const tell = (message) => {
    write(error, message);
    error.hidden = !message;
  };
  const recount = () => write(hint, `${count(texts().length, "text")} of up to ${MOST}. Ctrl + Enter compares.`);
  box.addEventListener("input", recount);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  recount();

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = texts();
    if (button.disabled) return;
    if (given.length < 2 || given.length > MOST) {
      tell(`There are ${count(given.length, "text")}; 2 to ${MOST} can be compared.`);
      box.focus();
      return;
    }
    tell("");
    button.disabled = true;
    write(button, "Comparing");
    try {
      show(place, given, await embed(given), tell);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      tell(problem.message);
      if (problem.status === 401) refused(problem);
    } finally {
      button.disabled = false;
      write(button, "Compare");
    }
  });
}

/** The result of a job; waits without a limit. Throws Problem. */
async function embed(texts) {
  const patience = (WAIT + 10) * 1000;
  let job = await ask(`jobs?wait=${WAIT}`, { body: { input: texts }, patience });
  if (job.result) return job.result;
  while (job.status === "queued" || job.status === "running") {
    job = await ask(`jobs/${encodeURIComponent(job.id)}?wait=${WAIT}`, { patience });
  }
  if (job.status !== "succeeded") throw new Problem(409, job.status, job.error?.message ?? `The job was ${job.status}.`);
  return ask(`jobs/${encodeURIComponent(job.id)}/result`);
}

function show(place, given, result, tell) {
  const kept = given.map((text, index) => ({ text, vector: result.embeddings[index] })).filter((one) => one.vector);
  if (result.errors.length) tell(`${count(result.errors.length, "text")} left out: ${result.errors[0].message}`);
  if (kept.length < 2) {
    place.replaceChildren();
    return;
  }
  const texts = kept.map((one) => one.text);
  const vectors = kept.map((one) => one.vector);
  const matrix = similarities(vectors);
  const light = (indices) => {
    for (const one of place.querySelectorAll("[data-text]")) {
      one.classList.toggle("lit", indices.includes(Number(one.dataset.text)));
    }
  };
  const best = closest(matrix);
  place.replaceChildren(heatMap(texts, matrix, light), scatter(texts, principal(vectors), light), pairs(texts, best));
  const [value, i, j] = best[0];
  const told = `${count(texts.length, "text")} compared. Most alike, at ${value.toFixed(2)}: ${texts[i]} / ${texts[j]}`;
  write(place.parentElement.querySelector("[role=status]"), told);
}

/** The most similar pairs, as [similarity, index, index]. */
function closest(matrix) {
  const all = matrix.flatMap((row, i) => row.slice(i + 1).map((value, k) => [value, i, i + 1 + k]));
  return all.sort((a, b) => b[0] - a[0]).slice(0, 3);
}

function pairs(texts, best) {
  const items = best.map(([value, i, j]) => h("li", {}, h("b", {}, value.toFixed(2)), h("span", {}, texts[i]), h("span", {}, texts[j])));
  return h("div", { class: "pairs" }, h("h3", {}, "Most alike"), h("ol", {}, ...items));
}
