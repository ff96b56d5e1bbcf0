// The page: reads the status and the jobs every two seconds, and shows them.

import { Figure } from "./chart.js";
import { ask, key, Problem } from "./client.js";
import { installCompare } from "./compare.js";
import { mark, write } from "./dom.js";
import { count, duration, percent, short, whole } from "./format.js";
import { showJobs, showWorkers } from "./tables.js";

const INTERVAL = 2000;
/** Longest time in ms between two tries while the API is away; it doubles each time. */
const LONGEST = 16_000;
const JOBS = 12;

const $ = (id) => document.getElementById(id);
const figures = {
  queue: new Figure($("queue"), { format: (value) => `${short(value)} tokens` }),
  throughput: new Figure($("throughput"), { format: (value) => `${short(value)} tokens/s` }),
  fill: new Figure($("fill"), { format: percent, most: 1 }),
  latency: new Figure($("latency"), { format: duration }),
};
let pause = INTERVAL;
let timer = null;
let seenAt = null;

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  look();
});
$("forget-key").addEventListener("click", () => {
  key.forget();
  // Also removes the data that the key gave access to.
  location.reload();
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
installCompare($("compare-form"), $("comparison"), away);
look();

/** Read and show everything, and schedule the next reading. */
async function look() {
  clearTimeout(timer);
  try {
    const [status, jobs] = await Promise.all([ask("status"), ask(`jobs?limit=${JOBS}`)]);
    show(status, jobs.data);
    pause = INTERVAL;
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    away(problem);
    pause = Math.max(Math.min(2 * pause, LONGEST), problem.status === 429 ? problem.retryAfter * 1000 : 0);
  } finally {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(look, pause);
  }
}

function show(status, jobs) {
  const now = Date.parse(status.at) / 1000;
  const live = status.workers.filter((worker) => worker.live);
  seenAt = new Date();
  document.body.classList.remove("stale", "locked");
  $("key-form").hidden = true;
  $("forget-key").hidden = key.get() === null;
  if (live.length) say("live", `${count(live.length, "worker")} live`);
  else say("alone", "No worker", "No worker makes progress, so jobs are refused. Start one with: celery -A worker worker");
  showFigures(status);
  showWorkers($("workers"), status.workers);
  empty("workers", status.workers.length, "No worker has been here in the last ten minutes.");
  showJobs($("jobs"), jobs, now, cancel);
  empty("jobs", jobs.length, "No job yet. Compare some texts below, or POST one to /jobs.");
  write($("jobs-note"), jobs.length === JOBS ? `The newest ${JOBS}` : "");
  document.title = status.queue.tokens ? `${short(status.queue.tokens)} queued · embedq` : "embedq";
}

function showFigures({ queue, history, workers }) {
  const { step } = history;
  const rate = latest(history.tokens_per_second);
  const clears = queue.tokens && rate ? `, clears in ${duration(queue.tokens / rate)}` : "";
  figures.queue.show({
    value: short(queue.tokens),
    unit: queue.tokens === 1 ? "token" : "tokens",
    note: `${whole(queue.waiting)} waiting, ${whole(queue.taken)} taken${clears}`,
    values: history.queued_tokens,
    step,
  });
  figures.throughput.show({
    value: short(rate),
    unit: rate === null ? "" : "tokens/s",
    note: rate === null ? "" : `${short(latest(history.texts_per_second))} texts/s`,
    values: history.tokens_per_second,
    step,
  });
  const budgets = [...new Set(workers.filter((one) => one.live).flatMap((one) => Object.values(one.batch_tokens)))];
  figures.fill.show({
    value: percent(recent(history.fill)).replace(" %", ""),
    unit: recent(history.fill) === null ? "" : "%",
    note: budgets.length ? `of ${budgets.map(whole).join(" or ")} tokens a batch` : "",
    values: history.fill,
    step,
  });
  const [value, unit = ""] = duration(recent(history.job_seconds_p50)).split(" ");
  figures.latency.show({
    value,
    unit: unit && `${unit} median`,
    note: unit
      ? `95 % within ${duration(recent(history.job_seconds_p95))}, one pass ${duration(recent(history.forward_seconds))}`
      : "no job has ended lately",
    values: history.job_seconds_p50,
    above: history.job_seconds_p95,
    step,
  });
}

/** The newest value, or the one before if this step has no value yet. */
function latest(values) {
  return values.at(-1) ?? values.at(-2) ?? null;
}

/** The newest existing value: that of the last batches, even if there are none now. */
function recent(values) {
  return values.findLast((value) => value !== null) ?? null;
}

/** Show why the page cannot be updated. */
function away(problem) {
  document.body.classList.toggle("stale", seenAt !== null);
  const since = seenAt ? ` Figures are of ${seenAt.toLocaleTimeString()}.` : "";
  if (problem.status === 401 || problem.status === 403) {
    const refused = key.get() !== null;
    document.body.classList.toggle("locked", seenAt === null);
    say("locked", refused ? "Key refused" : "Key needed", refused ? problem.message : "");
    $("forget-key").hidden = !refused;
    if ($("key-form").hidden) {
      $("key-form").hidden = false;
      $("key").focus();
    }
  } else if (problem.status === 429) {
    say("alone", "Over the quota", `${problem.message}${since} The page slows down.`);
  } else if (problem.code === "redis_unavailable") {
    say("down", "Redis is away", `Redis does not answer; jobs that were accepted are safe.${since}`);
  } else {
    say("down", problem.status ? "Trouble" : "API is away", `${problem.message}${since} Trying again.`);
  }
}

function say(state, words, notice = "") {
  mark($("state"), "data-state", state);
  write($("state"), words);
  write($("notice"), notice);
  $("notice").hidden = !notice;
}

function empty(what, number, words) {
  write($(`${what}-empty`), words);
  $(`${what}-empty`).hidden = number > 0;
  $(what).closest("table").hidden = number === 0;
}

async function cancel(job) {
  try {
    await ask(`jobs/${encodeURIComponent(job.id)}/cancel`, { method: "POST" });
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.status !== 404) away(problem);
  }
  look();
}
