// The page: one run as it trains, or as it ended, and others laid over it.

import { Chart, html, short } from "./charts.js";
import { PHASES, checkpoints, rate as byteRate, servers, span, timeline, workers } from "./tables.js";

const $ = (id) => document.getElementById(id);
const state = { run: null, live: null, over: new Map(), source: null, runs: [] };

const charts = {
  loss: new Chart({ title: "Training loss" }),
  accuracy: new Chart({ title: "Held-out accuracy", none: "No accuracy on held-out data yet", unit: (value) => `${(value * 100).toFixed(1)} %` }),
  throughput: new Chart({ title: "Throughput, samples a second", zero: true }),
  phases: new Chart({ title: "Where a step's time goes", kind: "stack", unit: span }),
  staleness: new Chart({ title: "Steps by the staleness of their gradients", kind: "bars", across: "staleness" }),
  network: new Chart({ title: "Between workers and servers", zero: true, unit: byteRate }),
  cores: new Chart({ title: "Cores kept busy", zero: true }),
  gpu: new Chart({ title: "GPUs, share of time that they computed", zero: true, unit: (value) => `${(value * 100).toFixed(0)} %` }),
  rate: new Chart({ title: "Learning rate", zero: true }),
  norm: new Chart({ title: "Norm of the gradient", zero: true }),
};
$("charts").append(...Object.values(charts).map((chart) => chart.element));

async function get(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `${answer.status} ${answer.statusText}`);
  return answer.json();
}

function tile(name, value, more, share) {
  const bar = share == null ? null : html("progress", { max: 1, value: share, "aria-label": name });
  return html("div", { class: "tile" }, html("div", { class: "name" }, name), html("div", { class: "value" }, value), html("div", { class: "more" }, more ?? ""), bar);
}

function numbers({ status, story, live }) {
  const total = status.total_steps, step = Math.max(story.step, status.steps ?? 0);
  const loss = story.loss.at(-1)?.[1], score = story.evaluation.accuracy.at(-1), heldOut = story.evaluation.loss.at(-1);
  const rate = live ? status.samples_per_second_now ?? status.samples_per_second : status.samples_per_second;
  const alive = (status.workers ?? []).filter((row) => row.alive !== false).length;
  const slow = (status.workers ?? []).filter((row) => row.straggler).length;
  const last = story.checkpoints.at(-1);
  $("numbers").replaceChildren(
    tile("Step", `${step}`, [total ? `of ${total}` : null, live && status.eta_seconds != null ? `${span(status.eta_seconds)} left` : `${span(status.wall_seconds)} of training`].filter(Boolean).join(", "), total ? step / total : null),
    tile("Loss", short(loss), heldOut ? `held-out ${short(heldOut[1])}` : ""),
    tile("Accuracy", score ? `${(score[1] * 100).toFixed(2)} %` : "–", score ? `after step ${score[0]}` : "not scored yet"),
    tile("Samples a second", short(rate), `${short(status.samples)} in all`),
    tile("Workers", `${alive}`, [slow ? `${slow} slow` : null, `${status.restarts ?? 0} restarts`].filter(Boolean).join(", ")),
    tile("Faults", `${status.faults ?? 0}`, `${status.rollbacks ?? 0} roll-backs, ${status.skipped_steps ?? 0} skipped steps`),
    tile("Checkpoint", last ? `step ${last.step}` : "–", last?.time && live ? `${span(Date.now() / 1e3 - last.time)} ago` : ""),
    tile("Task", status.task ?? "–", [status.data, status.mode].filter(Boolean).join(", ")),
  );
}

function show(run) {
  state.live = run;
  const { status, story } = run;
  const all = [run, ...state.over.values()];
  const named = (of) => all.map((one, at) => ({ name: all.length > 1 ? one.name : of, points: POINTS[of](one.story), colour: at }));
  numbers(run);
  charts.loss.show(named("loss"));
  charts.accuracy.show(named("accuracy"));
  charts.throughput.show(named("samples/s"));
  charts.network.show(named("bytes/s"));
  charts.rate.show(named("learning rate"));
  charts.norm.show(named("norm"));
  charts.gpu.show(named("gpu"));
  charts.cores.show([["workers", story.worker_cores], ["servers", story.server_cores]].map(([name, points], colour) => ({ name, points, colour })));
  // What not every run has takes no room in those without.
  for (const chart of [charts.norm, charts.gpu]) chart.element.hidden = chart.series.length === 0;
  charts.phases.show(PHASES.map((phase) => ({ name: phase, points: story.step_seconds[phase] ?? [], colour: phase })));
  charts.staleness.show([{ name: "steps", points: Object.entries(story.staleness).map(([k, n]) => [Number(k), n]) }]);
  workers($("workers"), status.workers ?? []);
  servers($("servers"), status.servers ?? []);
  checkpoints($("checkpoints"), story.checkpoints);
  timeline($("timeline"), story.timeline);
  const ago = Date.now() / 1e3 - (status.last_fault_time ?? 0), isRecent = run.live && status.last_fault && ago < 600;
  $("notice").hidden = !status.error && !isRecent;
  $("notice").className = status.error ? "notice" : "notice warn";
  $("notice").textContent = status.error ?? `Last fault, ${span(ago)} ago: ${status.last_fault}`;
  document.title = `${run.name} · ${status.status ?? ""} · Convoy`;
  $("connection").className = `pill ${{ running: "good", starting: "good", done: "good", lost: "bad", failed: "bad", diverged: "bad" }[status.status] ?? "warn"}`;
  $("connection").textContent = status.status ?? "unknown";
}

const POINTS = {
  loss: (story) => story.loss,
  accuracy: (story) => story.evaluation.accuracy,
  "samples/s": (story) => story.samples_per_second,
  "bytes/s": (story) => story.bytes_per_second,
  "learning rate": (story) => story.learning_rate,
  norm: (story) => story.gradient_norm,
  gpu: (story) => story.gpu_utilisation,
};

function follow(name) {
  state.source?.close();
  state.run = name;
  state.ended = false;
  const source = new EventSource(`api/runs/${encodeURIComponent(name)}/events`);
  state.source = source;
  source.addEventListener("run", (event) => show(JSON.parse(event.data)));
  // The server says so when a run is over: nothing more comes.
  source.addEventListener("end", () => { source.close(); state.ended = true; });
  source.onerror = () => {
    if (state.live?.status.status === "running") {
      $("connection").className = "pill bad";
      $("connection").textContent = "connection lost";
    }
  };
}

async function list() {
  const { runs, current, may_act } = await get("api/runs");
  state.runs = runs;
  $("actions").hidden = !may_act;
  const chosen = state.run ?? (decodeURIComponent(location.hash.slice(1)) || current);
  $("run").replaceChildren(...[...runs].reverse().map((run) => html("option", { value: run.name, selected: run.name === chosen }, `${run.name} (${run.status})`)));
  const boxes = [...runs].reverse().filter((run) => run.name !== chosen).map((run) => {
    const box = html("input", { type: "checkbox", value: run.name, checked: state.over.has(run.name) });
    box.addEventListener("change", () => lay(run.name, box.checked));
    return html("label", {}, box, ` ${run.name}`);
  });
  const shown = [...$("overlay-runs").querySelectorAll("input")].map((box) => box.value).join();
  if (shown !== boxes.map((label) => label.firstChild.value).join()) $("overlay-runs").replaceChildren(...(boxes.length ? boxes : ["No other run"]));
  // One that is over may have been taken up again.
  const isBack = state.ended && runs.some((run) => run.name === state.run && run.status === "running");
  if (chosen && (state.run == null || isBack)) follow(chosen);
}

async function lay(name, isOn) {
  if (isOn) state.over.set(name, await get(`api/runs/${encodeURIComponent(name)}`));
  else state.over.delete(name);
  if (state.live) show(state.live);
}

async function act(what, body) {
  const answer = await fetch(`api/runs/${encodeURIComponent(state.run)}/${what}`, {
    method: "POST", body: JSON.stringify(body),
    headers: { "content-type": "application/json", authorization: `Bearer ${$("token").value}` },
  });
  const told = await answer.json().catch(() => ({}));
  $("answer").hidden = false;
  $("answer").className = answer.ok ? "notice warn" : "notice";
  $("answer").textContent = told.error ?? told.done ?? `${answer.status}`;
  clearTimeout(state.answered);
  state.answered = setTimeout(() => { $("answer").hidden = true; }, 10000);
}

$("run").addEventListener("change", (event) => {
  state.over.delete(event.target.value);
  location.hash = encodeURIComponent(event.target.value);
  follow(event.target.value);
  list();
});
$("actions").addEventListener("submit", (event) => { event.preventDefault(); act("scale", { workers: Number($("workers-wanted").value) }); });
$("stop").addEventListener("click", () => act("stop", {}));

const THEMES = ["auto", "light", "dark"], dark = matchMedia("(prefers-color-scheme: dark)");
let theme = localStorage.getItem("theme") ?? "auto";
function paint() {
  document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  $("theme").textContent = theme[0].toUpperCase() + theme.slice(1);
  $("theme").setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system" : theme}`);
}
$("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % 3];
  localStorage.setItem("theme", theme);
  paint();
});
dark.addEventListener("change", paint);
paint();

// Letters that do what buttons do, unless something is being written.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  if (event.key === "t") $("theme").click();
  if (event.key === "r") $("run").focus();
  if (event.key === "c") { $("overlay").open = !$("overlay").open; $("overlay").querySelector("input, summary")?.focus(); }
  if (event.key === "Escape") $("overlay").open = false;
});

async function keep() {
  try {
    await list();
  } catch (problem) {
    if (!state.live) {
      $("notice").hidden = false;
      $("notice").textContent = `Cannot list runs: ${problem.message}`;
    }
  }
  setTimeout(keep, 5000);
}
keep();
