"use strict";
// What the other scripts share: the data, a way to make elements, numbers as text, light and dark.
// Texts become nodes, never markup: nothing on this page sets HTML from a string.

const DATA = JSON.parse(await unpacked("data"));
const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const number = (value, digits = 2) =>
  value === null ? "none" : value.toFixed(digits).replace("-", "−");
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + number(value, digits);
const rounded = (value) => (Number.isInteger(value) || Math.abs(value) >= 1000 ? Math.round(value) : Number(value.toPrecision(3)));
const short = (value) => String(rounded(value)).replace("-", "−");

function choices(select, values, all) {
  select.replaceChildren(
    el("option", { value: "" }, all),
    ...values.map((value) => el("option", { value }, value)),
  );
  select.closest("label").hidden = values.length < 2;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").setAttribute("aria-pressed", String(name === "dark"));
  document.dispatchEvent(new Event("theme"));
}
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () =>
  theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
);

// Before the page is printed, and after. Paper is light.
function onPaper(listener) {
  addEventListener("beforeprint", () => listener(true));
  addEventListener("afterprint", () => listener(false));
  matchMedia("print").addEventListener("change", (change) => listener(change.matches));
}
let shown = null;
onPaper((paper) => {
  if (paper) shown ??= document.documentElement.dataset.theme;
  theme(paper ? "light" : (shown ?? document.documentElement.dataset.theme));
  if (!paper) shown = null;
});
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
