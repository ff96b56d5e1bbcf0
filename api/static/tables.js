// The workers and the recent jobs, as rows that stay in place while their cells change.

import { h, mark, reconcile, write } from "./dom.js";
import { ago, count, duration, NOTHING, percent, short, whole } from "./format.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/** Rows for the workers of `/status`. */
export function showWorkers(body, workers) {
  reconcile(body, workers, (worker) => worker.name, makeWorker, fillWorker);
}

/** Rows for the jobs of `/jobs`; `cancel(job)` is called when a job's button is pressed. */
export function showJobs(body, jobs, now, cancel) {
  const make = (job) => makeJob(job, cancel);
  reconcile(body, jobs, (job) => job.id, make, (row, job) => fillJob(row, job, now));
}

function makeWorker() {
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("i", { class: "dot" }), h("span", { class: "mono name" })),
    h("td", { "data-label": "Model" }),
    h("td", { "data-label": "Runs on" }),
    h("td", { "data-label": "Busy" }, h("meter", { min: 0, max: 1 }), " ", h("span")),
    h("td", { "data-label": "Encoded", class: "number" }),
    h("td", { "data-label": "Last progress", class: "number" }),
  );
}

function fillWorker(row, worker) {
  const [name, models, places, busy, encoded, progress] = row.children;
  mark(row, "data-state", worker.live ? "live" : "silent");
  write(name.lastChild, worker.name);
  write(models, worker.models.map((model) => `${model.name}, ${model.dimensions} d`).join("; "));
  const seats = worker.models.map(({ device, backend, dtype }) => [device, backend, dtype].join(" · "));
  write(places, [...new Set(seats)].join("; "));
  const share = worker.live ? worker.busy : null;
  busy.firstChild.value = share ?? 0;
  mark(busy.firstChild, "aria-label", `busy ${percent(share)}`);
  write(busy.lastChild, percent(share));
  write(encoded, `${short(worker.texts)} texts`);
  mark(encoded, "title", `${count(worker.texts, "text")}, ${count(worker.tokens, "token")} in ${whole(worker.batches)} batches`);
  write(progress, worker.live ? ago(worker.silent_seconds) : `silent for ${duration(worker.silent_seconds)}`);
}

function makeJob(job, cancel) {
  const button = h("button", { type: "button", class: "quiet", onclick: () => cancel(job) }, "Cancel");
  return h(
    "tr",
    {},
    h("td", { class: "status" }, h("i", { class: "dot" }), h("span"), h("small")),
    h("th", { scope: "row" }, h("code", { title: job.id }, job.id.slice(0, 8))),
    h("td", { "data-label": "Texts" }, h("progress", {}), " ", h("span")),
    h("td", { "data-label": "Model" }),
    h("td", { "data-label": "Submitted", class: "number" }),
    h("td", { "data-label": "Took", class: "number" }),
    h("td", { class: "action" }, button),
  );
}

function fillJob(row, job, now) {
  const [status, , texts, model, submitted, took, action] = row.children;
  const { done, total } = job.progress;
  const ended = ENDED.has(job.status);
  mark(row, "data-state", job.status);
  write(status.children[1], job.status);
  write(status.lastChild, job.error?.code ?? "");
  mark(status, "title", job.error?.message ?? null);
  const bar = texts.firstChild;
  bar.max = total || 1;
  bar.value = job.status === "succeeded" ? bar.max : done;
  mark(bar, "aria-label", `${whole(done)} of ${total === null ? "an unknown number of" : whole(total)} texts`);
  write(texts.lastChild, total === null ? NOTHING : ended || !done ? whole(total) : `${whole(done)} of ${whole(total)}`);
  mark(texts.lastChild, "data-noun", total === 1 ? "text" : "texts");
  write(model, job.model ?? NOTHING);
  const age = job.created_at === null ? null : now - Date.parse(job.created_at) / 1000;
  write(submitted, age === null ? NOTHING : ago(Math.max(age, 0)));
  write(took, elapsed(job));
  mark(action.firstChild, "aria-label", `Cancel job ${job.id.slice(0, 8)}`);
  action.firstChild.hidden = ended;
}

function elapsed(job) {
  if (job.finished_at === null || job.created_at === null) return NOTHING;
  return duration(Math.max(Date.parse(job.finished_at) - Date.parse(job.created_at), 0) / 1000);
}
