// Tables and lists: who is there, what happened.

import { colour, html, short } from "./charts.js";

export const PHASES = ["data", "compute", "push", "wait", "pull", "load"];

export function bytes(value) {
  if (value == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value >= 100 || at === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[at]}`;
}

// Bytes a second, as networks count them.
export function rate(value) {
  const units = ["B/s", "kB/s", "MB/s", "GB/s"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) { value /= 1000; at += 1; }
  return `${short(value)} ${units[at]}`;
}

export function span(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${String(Math.floor(seconds % 3600 / 60)).padStart(2, "0")} min`;
}

const number = (text) => html("td", { class: "number" }, text);
const heads = (names) => html("thead", {}, html("tr", {}, ...names.map(([name, isNumber]) => html("th", { scope: "col", class: isNumber ? "number" : false }, name))));

function badge(kind, text, title) { return html("span", { class: `pill ${kind}`, title: title ?? false }, text); }

function notes(row) {
  const cell = html("td");
  if (row.retired) cell.append(badge("", "let go", "Somebody asked for fewer workers"), " ");
  else if (row.alive === false) cell.append(badge("bad", row.awaited ? "starts again" : "gone"), " ");
  if (row.straggler) cell.append(badge("warn", "straggler", "Its part of a step takes more than twice as long as the others'"), " ");
  if (row.last_fault) cell.append(badge("bad", "had a fault", row.last_fault), " ");
  return cell;
}

// A worker's step as a bar, as long as the longest worker's is wide.
function phases(row, longest) {
  const bar = html("div", { class: "bar" });
  const told = PHASES.map((phase) => `${phase} ${span(row.step_seconds?.[phase] ?? 0)}`).join(", ");
  bar.title = told;
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", told);
  PHASES.forEach((phase) => {
    const part = html("i");
    part.style.width = `${(row.step_seconds?.[phase] ?? 0) / longest * 100}%`;
    part.style.background = colour(phase);
    bar.append(part);
  });
  return html("td", {}, bar);
}

function gpu(row) {
  if (!row.gpu) return "–";
  return `${(row.gpu.utilisation * 100).toFixed(0)} %, ${bytes(row.gpu.memory_used_bytes)}`;
}

export function workers(table, rows) {
  const total = (row) => PHASES.reduce((sum, phase) => sum + (row.step_seconds?.[phase] ?? 0), 0);
  const longest = Math.max(1e-9, ...rows.map(total));
  const head = heads([["rank", true], ["host"], ["device"], ["step", true], ["lag", true], ["where a step goes"], ["p50", true], ["p99", true],
    ["samples/s", true], ["cores", true], ["memory", true], ["GPU", true], ["pushed", true], ["heard", true], ["restarts", true], ["note"]]);
  const body = html("tbody", {}, ...rows.map((row) => html("tr", { class: row.alive === false && !row.retired ? "gone" : row.straggler ? "straggler" : false },
    number(row.rank), html("td", {}, row.host ?? ""), html("td", {}, row.device ?? ""), number(row.step ?? "–"), number(row.lag ?? "–"), phases(row, longest),
    number(span(row.step_seconds_p50)), number(span(row.step_seconds_p99)), number(short(row.samples_per_second)), number(row.cores?.toFixed(1) ?? "–"),
    number(bytes(row.memory_bytes)), number(gpu(row)), number(bytes(row.bytes_pushed)), number(span(row.heartbeat_age_seconds)), number(row.restarts ?? 0), notes(row))));
  table.replaceChildren(head, body);
}

export function servers(table, rows) {
  const head = heads([["rank", true], ["shard", true], ["address"], ["blocks", true], ["pushes in", true], ["work", true], ["cores", true], ["memory", true],
    ["heard", true], ["restarts", true], ["note"]]);
  const body = html("tbody", {}, ...rows.map((row) => html("tr", {}, number(row.rank), number(row.shard), html("td", {}, row.address ?? ""), number(row.blocks ?? "–"),
    number(row.open_pushes ?? "–"), number(span(row.work_seconds)), number(row.cores?.toFixed(1) ?? "–"),
    number(bytes(row.memory_bytes)), number(span(row.heartbeat_age_seconds)), number(row.restarts ?? 0), notes(row))));
  table.replaceChildren(head, body);
}

export function checkpoints(table, rows) {
  if (rows.length === 0) return table.replaceChildren(html("caption", {}, "None yet"));
  const head = heads([["step", true], ["when"], ["took", true], ["size", true]]);
  const body = html("tbody", {}, ...[...rows].reverse().map((row) => html("tr", {}, number(row.step), html("td", {}, clock(row.time)), number(span(row.seconds)), number(bytes(row.bytes)))));
  table.replaceChildren(head, body);
}

export function timeline(list, rows) {
  const drawn = JSON.stringify(rows);
  if (list.drawn === drawn) return;
  list.drawn = drawn;
  list.replaceChildren(...[...rows].reverse().map((row) => html("li", { class: row.is_trouble ? "trouble" : false },
    html("span", {}, clock(row.time)), html("span", {}, `step ${row.step}`), html("span", {}, row.text || row.kind))));
}

export function clock(time) { return time == null ? "" : new Date(time * 1e3).toLocaleTimeString(); }
