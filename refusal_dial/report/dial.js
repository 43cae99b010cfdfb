// The dial: one slider, and a side for each run, or for each direction that is compared.
// A side shows, at the measured alpha nearest to the slider, how many of the chosen prompts are over
// the threshold, unsteered and now. `dial_rows.js` shows the prompts themselves.

const RUNS = DATA.dial.runs;
const FIRST = ["EDGE", "CHALLENGING", "HARMFUL"];
const sides = RUNS.map((run) => side(run));
let stops = [];
let stop = 0;

function side(run) {
  const series = run.series.find((one) => one.kind === "learned") || run.series[0] || null;
  return { run, series, threshold: run.threshold, by: run.kind === "replies" ? "judge" : "score" };
}

const baseOf = ({ run, series }) =>
  run.base.find((one) => series && one.system === series.system) || run.base[0];
const wordsOf = (run) =>
  run.kind === "continuations" ? ["over the threshold", "under the threshold"] : ["refused", "not refused"];

// The step of a side's series that is nearest to the slider.
function step({ series }) {
  if (!series) return -1;
  let best = 0;
  series.at.forEach((at, i) => {
    if (Math.abs(at - stops[stop]) < Math.abs(series.at[best] - stops[stop])) best = i;
  });
  return best;
}
// Alpha 0 is the unsteered model, whether or not the run measured it again under that name.
const unsteered = ({ series }) => stops[stop] === 0 && !series.at.includes(0);

// What a side shows at the slider, and unsteered: { scores, completions }.
function nowOf(one) {
  const { series } = one;
  if (!series || unsteered(one)) return baseOf(one);
  const at = step(one);
  return { scores: series.scores[at], completions: series.completions?.[at] };
}

// Whether a prompt is over the threshold, or by the judge, whether most completions refuse.
// null where there is no score, or the judge gave none.
function over(one, { scores, completions }, i) {
  if (one.by === "score") return (scores[i] ?? null) === null ? null : scores[i] > one.threshold;
  const read = (completions[i] || []).map(([, , label]) => one.run.labels[label]).filter((label) => label !== "unscored");
  return read.length ? 2 * read.filter((label) => label.endsWith("refusal")).length > read.length : null;
}

// +1: over the threshold now and not before; -1: the other way; 0: neither, or no score.
function flip(one, i) {
  const was = over(one, baseOf(one), i), now = over(one, nowOf(one), i);
  return was === null || now === null ? 0 : Number(now) - Number(was);
}

function layOut() {
  const every = [0, ...sides.flatMap((one) => one.series?.at ?? [])];
  const at = stops[stop] ?? 0;
  stops = [...new Set(every)].sort((a, b) => a - b);
  stop = stops.reduce((best, x, i) => (Math.abs(x - at) < Math.abs(stops[best] - at) ? i : best), 0);
  const slider = byId("alpha");
  slider.max = stops.length - 1;
  slider.disabled = stops.length < 2;
  const crowded = Math.ceil(stops.length / 17);
  byId("ticks").replaceChildren(
    ...stops.map((x, i) => {
      const end = i === 0 || i === stops.length - 1;
      const label = i % crowded === 0 || end ? short(x) : "";
      const left = `left:${(100 * i) / Math.max(1, stops.length - 1)}%`;
      return el("span", { style: left, class: end ? "end" : null }, label);
    }),
  );
  byId("sides").replaceChildren(...sides.map(sideElement));
  turn(stop);
}

function picked(values, label, shown, chosen, onchange) {
  if (values.length < 2) return null;
  const select = el("select", { "aria-label": label, onchange: (event) => onchange(values[event.target.selectedIndex]) });
  for (const value of values) select.append(el("option", { selected: value === chosen }, shown(value)));
  return el("label", {}, `${label} `, select);
}

function sideElement(one, index) {
  const { run, series } = one;
  const distinct = (name, list) => [...new Set(list.map((each) => each[name]))];
  const choose = (wanted) => {
    const fits = (each) => Object.entries(wanted).every(([name, value]) => each[name] === value);
    const near = (each) =>
      ["layer", "system", "kind", "seed"].filter((name) => each[name] === series[name]).length;
    one.series = run.series.filter(fits).sort((a, b) => near(b) - near(a))[0];
    layOut();
    sides.indexOf(one) >= 0 && byId("sides").children[index].querySelector(":checked")?.focus();
  };
  const here = series ? run.series.filter((each) => each.layer === series.layer && each.system === series.system) : [];
  const kinds = distinct("kind", here);
  const kind = el("fieldset", { "aria-label": "direction" });
  for (const name of kinds) {
    const radio = el("input", {
      type: "radio", name: `kind-${index}`, value: name, checked: name === series.kind,
      onchange: () => choose({ kind: name }),
    });
    kind.append(el("label", {}, radio, name.replaceAll("_", " ")));
  }
  const seeds = series ? here.filter((each) => each.kind === series.kind).map((each) => each.seed) : [];
  const threshold = el("input", {
    type: "number", step: "any", value: one.threshold,
    onchange: (event) => {
      one.threshold = Number(event.target.value) || 0;
      turn(stop);
    },
  });
  const where = run.threshold_chosen ? " (this page's: the run has none)" : "";
  const close = sides.length > RUNS.length
    ? el("button", { type: "button", "aria-label": `remove ${run.name}`, onclick: () => {
        sides.splice(index, 1);
        layOut();
      } }, "Remove")
    : null;
  return el("article", { class: "side", "aria-label": `${run.name}, side ${index + 1}` },
    el("header", {}, el("h3", {}, sides.length > 1 ? run.name : `${run.model}, ${run.experiment}`), close),
    el("div", { class: "choices" },
      picked(RUNS, "run", (each) => each.name, run, (chosen) => {
        Object.assign(one, side(chosen));
        layOut();
      }),
      kinds.length ? kind : null,
      picked(seeds, "number", (seed) => String(seed ?? 0), series?.seed, (seed) => choose({ kind: series.kind, seed })),
      picked(distinct("layer", run.series), "layer", String, series?.layer, (layer) => choose({ layer })),
      picked(distinct("system", run.series), "system message", (name) => name || "none", series?.system,
        (system) => choose({ system })),
      picked(run.kind === "replies" ? ["score", "judge"] : [], "by", String, one.by, (by) => {
        one.by = by;
        layOut();
      }),
      one.by === "score" ? el("label", {}, `threshold${where} `, threshold) : null),
    run.left_out ? el("p", { class: "muted" }, `Control directions left out of this page: ${run.left_out}.`) : null,
    el("p", { class: "muted at" }),
    el("div", { class: "meters" }));
}

// The share over the threshold for each subset among the prompts that the filters leave.
function meters(one, shown) {
  const groups = new Map();
  for (const i of shown) {
    const now = over(one, nowOf(one), i), was = over(one, baseOf(one), i);
    if (now === null || was === null) continue;
    const { subset } = one.run.prompts[i];
    const group = groups.get(subset) || { n: 0, now: 0, was: 0, flips: 0 };
    group.n += 1;
    group.now += now;
    group.was += was;
    group.flips += now !== was;
    groups.set(subset, group);
  }
  return [...groups].map(([subset, group]) => {
    const a = group.was / group.n, b = group.now / group.n;
    const span = `left:${100 * Math.min(a, b)}%;width:${100 * Math.abs(a - b)}%`;
    return el("div", { class: "meter" },
      el("span", {}, subset, " ", el("small", { class: "muted" }, `n ${group.n}`)),
      el("div", { class: "track", "aria-hidden": "true" },
        el("i", { class: "span", style: span }),
        el("i", { class: "was", style: `left:${100 * a}%` }),
        el("i", { class: "now", style: `left:${100 * b}%` })),
      el("span", {}, `${number(a)} → `, el("b", {}, number(b))),
      el("span", { class: "flips" }, `${group.flips} flips`));
  });
}

function turn(to) {
  stop = to;
  const slider = byId("alpha");
  slider.value = stop;
  byId("alpha-value").textContent = stops.length > 1 ? (stops[stop] > 0 ? "+" : "") + short(stops[stop]) : "unsteered";
  slider.setAttribute("aria-valuetext", `${DATA.dial.unit_name}: ${short(stops[stop])}`);
  [...byId("ticks").children].forEach((tick, i) => {
    tick.classList.toggle("now", i === stop);
  });
  showRows();
}

function showSides(shown) {
  const spoken = sides.map((one, s) => {
    const element = byId("sides").children[s];
    const alpha = one.series && !unsteered(one) ? one.series.alphas[step(one)] : 0;
    const [what] = wordsOf(one.run);
    element.querySelector(".at").textContent = one.series
      ? `alpha ${short(alpha)} in residual-stream units; share ${what}, unsteered → now`
      : `share ${what}, unsteered`;
    const made = meters(one, shown[s]);
    element.querySelector(".meters").replaceChildren(...made);
    return made.map((meter) => meter.textContent).join("; ");
  });
  byId("announced").textContent = spoken.join(". ");
}

byId("alpha").addEventListener("input", (event) => turn(Number(event.target.value)));
byId("zero").addEventListener("click", () =>
  turn(stops.reduce((best, x, i) => (Math.abs(x) < Math.abs(stops[best]) ? i : best), 0)),
);
byId("compare").addEventListener("click", () => {
  const last = sides.at(-1);
  const other = last.run.series.find((one) => one.kind !== last.series?.kind) || last.series;
  sides.push({ ...last, series: other });
  layOut();
});
