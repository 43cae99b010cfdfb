// The prompts under the dial: each with its score at this alpha, how it moves along the dial, and what
// the completions. Prompts of several runs are matched by id and text.

const PAGE = 50;
let length = PAGE;

const matched = new Map();
sides.forEach(({ run }) => run.prompts.forEach((prompt, i) => {
  const key = JSON.stringify([prompt.id, prompt.text]);
  const entry = matched.get(key) || { prompt, at: new Map() };
  entry.at.set(run, i);
  matched.set(key, entry);
}));
const rank = ({ prompt }) => [...FIRST, prompt.subset].indexOf(prompt.subset);
const entries = [...matched.values()].sort((a, b) => rank(a) - rank(b));
const distinctly = (name) => [...new Set(entries.map((entry) => entry.prompt[name]).filter(Boolean))];

choices(byId("subset"), distinctly("subset"), "all");
choices(byId("category"), distinctly("category").sort(), "all");
choices(byId("split"), distinctly("split"), "all");
if (distinctly("split").includes("holdout")) byId("split").value = "holdout";

const index = (one, entry) => entry.at.get(one.run);
const now = (one, entry) => nowOf(one).scores[index(one, entry)] ?? null;
const change = (entry) => Math.max(...sides.map((one) => {
  const was = baseOf(one).scores[index(one, entry)] ?? null;
  return was === null || now(one, entry) === null ? -1 : Math.abs(now(one, entry) - was);
}));

function chosen() {
  const [subset, category, split] = ["subset", "category", "split"].map((id) => byId(id).value);
  const sought = byId("search").value.trim().toLowerCase();
  const found = entries.filter(({ prompt }) =>
    (!subset || prompt.subset === subset) && (!category || prompt.category === category) &&
    (!split || prompt.split === split) &&
    (!sought || `${prompt.id} ${prompt.text || ""}`.toLowerCase().includes(sought)));
  return found;
}

function ordered(found) {
  const turned = byId("flips").checked
    ? found.filter((entry) => sides.some((one) => flip(one, index(one, entry))))
    : [...found];
  const value = (entry, none) => now(sides[0], entry) ?? none;
  const by = {
    order: null,
    change: (a, b) => change(b) - change(a),
    high: (a, b) => value(b, -Infinity) - value(a, -Infinity),
    low: (a, b) => value(a, Infinity) - value(b, Infinity),
  }[byId("sort").value];
  return by ? turned.sort(by) : turned;
}

function showRows() {
  const found = chosen();
  showSides(sides.map((one) => found.map((entry) => index(one, entry)).filter((i) => i !== undefined)));
  const rows = ordered(found);
  byId("prompts").classList.toggle("solo", sides.length === 1);
  byId("prompts").replaceChildren(...rows.slice(0, length).map(row));
  byId("shown").textContent =
    `${Math.min(length, rows.length)} of ${rows.length} prompts shown, ${entries.length} in all`;
  byId("more").hidden = rows.length <= length;
  const why = [...new Set(sides.map((one) => one.run.why_no_texts).filter(Boolean))];
  byId("no-texts").hidden = !why.length;
  byId("no-texts").textContent = `Some prompts are shown by id alone: ${why.join("; ")}.`;
}

function row(entry) {
  const { prompt } = entry;
  const flips = sides.map((one) => (index(one, entry) === undefined ? 0 : flip(one, index(one, entry))));
  const mark = flips.some((f) => f > 0) ? "up" : flips.some((f) => f < 0) ? "down" : "";
  const about = [prompt.subset, prompt.category, prompt.split, prompt.id].filter(Boolean).join(" · ");
  return el("li", { class: mark },
    el("div", { class: "about" }, about),
    el("p", { class: "text" }, prompt.text ?? prompt.id),
    el("div", { class: "cells columns" }, ...sides.map((one, s) => cell(one, index(one, entry), flips[s]))));
}

function cell(one, i, flipped) {
  if (i === undefined) return el("div", { class: "cell muted" }, "not in this run");
  const was = baseOf(one).scores[i], score = nowOf(one).scores[i];
  const [high, low] = wordsOf(one.run);
  const label = flipped > 0 ? `now ${high}` : flipped < 0 ? `now ${low}` : "";
  const moved = was === null || score === null ? "" : signed(score - was);
  return el("div", { class: "cell" },
    el("div", { class: "line" },
      el("span", { class: "score" }, number(score)),
      el("span", { class: "change", title: "change from unsteered" }, moved),
      one.series && one.series.at.length > 1 ? spark(one, i) : null,
      label ? el("span", { class: `flip ${flipped > 0 ? "up" : "down"}` }, label) : null),
    ...completionsOf(one, i));
}

// The prompt's score along the dial; the dotted line is the threshold.
function spark(one, i) {
  const { series, run } = one;
  run.range ||= range(run);
  const [low, high] = run.range, [first, last] = [series.at[0], series.at.at(-1)];
  const x = (at) => (100 * (at - first)) / (last - first);
  const y = (score) => 30 - (28 * (score - low)) / (high - low || 1);
  const points = series.at.map((at, k) => [at, series.scores[k][i]]).filter(([, score]) => score !== null);
  const picture = svg("svg", { viewBox: "0 0 100 32", preserveAspectRatio: "none", "aria-hidden": "true" });
  const line = { fill: "none", "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" };
  if (one.threshold > low && one.threshold < high) {
    const level = y(one.threshold);
    picture.append(svg("path", { ...line, d: `M0 ${level}H100`, stroke: "var(--line)", "stroke-dasharray": "2 3" }));
  }
  const path = points.map(([at, score], k) => `${k ? "L" : "M"}${x(at).toFixed(1)} ${y(score).toFixed(1)}`).join("");
  const colour = series.kind === "learned" ? "var(--accent)" : "var(--muted)";
  picture.append(svg("path", { ...line, d: path, stroke: colour }));
  const k = step(one), score = series.scores[k][i];
  if (score !== null && !unsteered(one)) {
    const dot = `M${x(series.at[k]).toFixed(1)} ${y(score).toFixed(1)}h0`;
    picture.append(svg("path", { ...line, d: dot, stroke: colour, "stroke-width": 8, "stroke-linecap": "round" }));
  }
  return picture;
}

function range(run) {
  let [low, high] = [Infinity, -Infinity];
  for (const list of run.series.filter((one) => one.kind === "learned").flatMap((one) => one.scores)) {
    for (const score of list) if (score !== null) [low, high] = [Math.min(low, score), Math.max(high, score)];
  }
  return [low, high];
}

// The completion now and, where it differs, unsteered; further samples behind a fold.
function completionsOf(one, i) {
  const here = nowOf(one).completions?.[i];
  if (!here?.length) return [];
  const { run } = one, before = baseOf(one).completions[i];
  const quote = ([word, score, label], kind) => el("blockquote", { class: kind },
    run.words[word] || "(nothing)", " ",
    el("small", {}, [run.labels[label].replaceAll("_", " "), here.length > 1 ? number(score) : ""].filter(Boolean).join(", ")));
  const out = [quote(here[0], "now")];
  const more = here.slice(1).map((sample) => quote(sample, "now"));
  const changed = before.some(([word], k) => word !== here[k]?.[0]);
  if (more.length) out.push(el("details", {}, el("summary", {}, `${more.length} more samples`), ...more));
  if (changed) out.push(el("details", {}, el("summary", {}, "unsteered"), ...before.map((sample) => quote(sample, "was"))));
  return out;
}

for (const id of ["search", "subset", "category", "split", "sort", "flips"]) {
  byId(id).addEventListener("input", () => {
    length = PAGE;
    showRows();
  });
}
byId("search").form.addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", () => {
  length += PAGE;
  showRows();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.matches("input, select")) {
    event.preventDefault();
    byId("search").focus();
  }
});
byId("alpha-name").textContent = DATA.dial.unit_name;
if (RUNS.length) {
  layOut();
  turn(stops.length - 1 - Math.floor(stops.length / 4));
}
