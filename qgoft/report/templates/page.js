"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const make = (name, text, attributes = {}) => {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};

// Sorting: a measured row takes the lines below it (published, difference) along.
const UNITS = { K: 1e3, M: 1e6, B: 1e9 };
const numberOf = (text) => {
  // A number, its unit, and nothing or a blank, sign or bracket behind: a commit's 62e3de is a word.
  const found = text.replaceAll(",", "").replaceAll("−", "-").match(/^([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)([KMB%]?)(?![\w.])/);
  return found ? parseFloat(found[1]) * (UNITS[found[2]] ?? 1) : NaN;
};
function sortBy(table, column, direction) {
  const groups = [];
  for (const row of table.tBodies[0].rows) {
    if (row.classList.contains("sub") && groups.length) groups.at(-1).push(row);
    else groups.push([row]);
  }
  const key = (group) => (group[0].cells[column] ? group[0].cells[column].textContent.trim() : "");
  groups.sort((a, b) => {
    const [x, y] = [numberOf(key(a)), numberOf(key(b))];
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what is no number goes last, either way
    return direction * (isNaN(x) ? key(a).localeCompare(key(b)) : x - y);
  });
  table.tBodies[0].append(...groups.flat());
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    sortBy(head.closest("table"), head.cellIndex, down ? -1 : 1);
  });
}

for (const input of document.querySelectorAll("input.filter")) {
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    let shown = true;
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
      if (!row.classList.contains("sub")) shown = !wanted.length || wanted.some((word) => row.cells[0].textContent.toLowerCase().includes(word));
      row.hidden = !shown;
    }
  });
}

// The runs behind a cell.
function curve(points, title) {
  const [w, h, left, base] = [420, 130, 44, 18];
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  const draw = (name, attributes, text) => {
    const node = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    svg.append(node);
  };
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const [top, low, last] = [Math.max(...ys), Math.min(...ys), Math.max(...xs)];
  const x = (v) => left + ((w - left - 6) * v) / (last || 1);
  const y = (v) => 6 + ((h - base - 12) * (top - v)) / (top - low || 1);
  draw("polyline", { points: points.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), fill: "none", stroke: "var(--link)", "stroke-width": 1.5 });
  for (const v of [top, low]) draw("text", { x: left - 4, y: y(v) + 3, "text-anchor": "end", "font-size": 10, fill: "var(--soft)" }, v.toPrecision(3));
  draw("text", { x: w - 6, y: h - 4, "text-anchor": "end", "font-size": 10, fill: "var(--soft)" }, `step ${last}`);
  return svg;
}
function list(pairs) {
  const node = make("dl");
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    node.append(make("dt", name), make("dd", String(value)));
  }
  return node;
}
// What many runs have alike is written once; a run names its place.
const shared = (place) => data.shared[place];
function points(place) {
  if (place === null) return [];
  const [steps, values] = shared(place);
  return shared(steps).map((step, i) => [step, values[i]]);
}
// Settings of a run without those that all runs of its cell share, and those themselves.
const settingsOf = (run) => ({ ...data.settings[run.settings], ...Object.fromEntries(run.own.map(shared)) });
function splitSettings(runs) {
  const all = runs.map(settingsOf);
  const names = [...new Set(all.flatMap(Object.keys))];
  return names.filter((name) => all.some((settings) => settings[name] !== all[0][name]));
}
function showRun(run, differing) {
  const details = make("details");
  const score = run.value === null ? run.status : `${run.primary} ${run.value.toFixed(2)}`;
  details.append(make("summary", `${run.task}, ${run.name}, seed ${run.seed}: ${score}`));
  details.append(list([["status", run.status + (run.reason ? `: ${run.reason}` : "")], ...Object.entries(run.metrics), ...run.facts.map(([name, value]) => [shared(name), value])]));
  const [loss, scores] = [points(run.loss), points(run.scores)];
  if (loss.length > 1) details.append(make("h3", "Training loss"), curve(loss, "training loss by step"));
  if (scores.length > 1) details.append(make("h3", "Selection score"), curve(scores, "selection score by step"));
  const settings = settingsOf(run);
  if (differing.length) details.append(make("h3", "Settings that differ between these runs"), list(differing.map((name) => [name, settings[name] ?? "not set"])));
  const rest = make("details");
  rest.append(make("summary", "All settings"), list(Object.entries(settings)));
  details.append(rest, make("h3", "Provenance"), list(Object.entries({ ...shared(run.origin), key: run.key })));
  details.append(make("h3", "Command that repeats the run"), make("pre", run.command.map(shared).join(" ")));
  return details;
}
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("button.cell")) {
  button.addEventListener("click", () => {
    const runs = button.dataset.runs.split(" ").map((number) => data.runs[number]);
    const differing = splitSettings(runs);
    dialog.querySelector("h2").textContent = button.getAttribute("aria-label");
    dialog.querySelector(".runs").replaceChildren(...runs.map((run) => showRun(run, differing)));
    if (runs.length === 1) dialog.querySelector("details").open = true;
    dialog.showModal();
  });
}
dialog.querySelector("button").addEventListener("click", () => dialog.close());
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// Protocols: one panel of an entry is shown, of the last protocol that was chosen if the entry has it.
function choose(entry, protocol) {
  const buttons = [...entry.querySelectorAll(".switch button")];
  if (!buttons.some((button) => button.dataset.protocol === protocol)) return;
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.protocol === protocol));
  for (const panel of entry.querySelectorAll(".panel")) panel.hidden = panel.dataset.protocol !== protocol;
}
const entries = [...document.querySelectorAll("main .entry")];
for (const entry of entries) {
  for (const button of entry.querySelectorAll(".switch button")) button.addEventListener("click", () => choose(entry, button.dataset.protocol));
  const first = entry.querySelector(".switch button");
  if (first) choose(entry, first.dataset.protocol);
}
for (const button of document.querySelectorAll(".protocols button")) {
  button.addEventListener("click", () => entries.forEach((entry) => choose(entry, button.dataset.protocol)));
}
document.documentElement.classList.add("scripted");

// Search: only entries and table rows that contain every word stay. A row without them stays if the title of its entry has them.
const nothing = document.getElementById("nothing");
const texts = new Map(entries.map((entry) => [entry, entry.textContent.toLowerCase()]));
document.getElementById("search").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const entry of entries) {
    entry.hidden = !words.every((word) => texts.get(entry).includes(word));
    found += !entry.hidden;
    const link = document.querySelector(`nav a[href="#${entry.id}"]`);
    if (link) link.parentElement.hidden = entry.hidden;
  }
  for (const group of document.querySelectorAll("nav details")) group.open = words.length > 0 && [...group.querySelectorAll("li")].some((item) => !item.hidden);
  nothing.hidden = found > 0;
});

// Contents: the group of the entry in view is open, and its link is marked.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
if ("IntersectionObserver" in window) {
  const seen = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      const link = links.get(target.id);
      if (link && isIntersecting) {
        for (const other of links.values()) other.removeAttribute("aria-current");
        link.setAttribute("aria-current", "true");
      }
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  entries.forEach((entry) => seen.observe(entry));
}

// Charts replace the drawn figures as they come into view. Colours are the page's, so that they follow light and dark.
const INK = { labelColor: "var(--ink)", titleColor: "var(--ink)", gridColor: "var(--line)", domainColor: "var(--soft)", tickColor: "var(--soft)" };
const CONFIG = { background: null, font: "system-ui, sans-serif", axis: INK, legend: INK, header: INK, title: { color: "var(--ink)" }, view: { stroke: null } };
async function showChart(node) {
  const spec = data.charts[node.dataset.chart];
  const drawn = [...node.childNodes];
  try {
    await vegaEmbed(node, { ...spec, config: { ...CONFIG, ...(spec.config ?? {}) } }, { ast: true, renderer: "svg", actions: false });
  } catch (error) {
    node.replaceChildren(...drawn); // the figure as it was drawn
    console.error(error);
  }
}
const charts = [...document.querySelectorAll("[data-chart]")];
if (window.vegaEmbed && "IntersectionObserver" in window) {
  const near = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      if (isIntersecting) {
        near.unobserve(target);
        showChart(target);
      }
    }
  }, { rootMargin: "400px" });
  charts.forEach((node) => near.observe(node));
}
