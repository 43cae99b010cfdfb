// Figures are drawn when they come into view, all of them before the page is printed, and again in other colours when the theme changes.

const LIGHTER = { "#0072B2": "#56B4E9", "#767676": "#9A9DA0", "#D55E00": "#F08A4B", "#000000": "#E9E9E7" };

function traces(figure) {
  if (document.documentElement.dataset.theme !== "dark") return figure.data;
  return JSON.parse(JSON.stringify(figure.data).replace(/#[0-9A-F]{6}/g, (colour) => LIGHTER[colour] || colour));
}

function coloured(figure) {
  const layout = structuredClone(figure.layout), line = ink("--line"), text = ink("--ink");
  Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" });
  layout.font = { ...layout.font, color: text };
  const axes = Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name));
  for (const name of axes) {
    layout[name] = { ...layout[name], linecolor: line, tickcolor: line, color: text };
  }
  for (const shape of layout.shapes || []) {
    if (shape.line?.color === "#000000") shape.line.color = text;
  }
  for (const note of layout.annotations || []) note.font = { ...note.font, color: text };
  return layout;
}

// Plotly is large, so it is text until the first figure is near.
function plotly() {
  if (!window.Plotly) document.head.append(el("script", {}, byId("plotly").textContent));
  return window.Plotly;
}

// As wide as it was made, or narrower to fit, down to two thirds; then its box scrolls.
const width = (box, { layout }) =>
  Math.min(layout.width, Math.max(box.clientWidth, 0.66 * layout.width));

function drawFigures() {
  const place = byId("figures");
  place.closest("section").hidden = !DATA.figures.length;
  const settings = { displaylogo: false, responsive: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  for (const { name, figure } of DATA.figures) {
    const box = el("div", { class: "figure", role: "img", "aria-label": name });
    box.style.minHeight = `${figure.layout.height}px`;
    let drawn = false;
    const draw = () => plotly().react(box, traces(figure), { ...coloured(figure), width: width(box, figure) }, settings);
    const watcher = new IntersectionObserver(
      (seen) => seen.some((one) => one.isIntersecting) && first(), { rootMargin: "400px" },
    );
    const first = () => {
      if (drawn) return;
      watcher.disconnect();
      drawn = true;
      draw();
    };
    watcher.observe(box);
    addEventListener("beforeprint", first);
    matchMedia("print").addEventListener("change", (print) => print.matches && first());
    document.addEventListener("theme", () => drawn && draw());
    place.append(box);
  }
}

drawFigures();
