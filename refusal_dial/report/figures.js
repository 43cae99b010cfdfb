// Figures are drawn when they come into view, all of them before the page is printed, and again when
// the theme or the width changes.

const PAPER = 660; // pixels of width that fit on a printed page, A4 or letter
const PAPER_HIGH = 800; // of height, below a heading

const asDark = () => document.documentElement.dataset.theme === "dark";

function drawFigures() {
  const place = byId("figures");
  place.closest("section").hidden = !DATA.figures.length;
  for (const { name, figure } of DATA.figures) {
    const [question, about] = titleOf(figure), box = el("div", { class: "plot", role: "img", "aria-label": name });
    const colours = () => ({ ink: ink("--ink"), line: ink("--line") });
    const wide = () => Math.min(figure.layout.width, box.clientWidth);
    const sized = (width, most) => fitted(figure, width, colours(), null, most);
    let near = false, drawn = 0;
    const draw = (width = wide(), most = Infinity) => {
      if (!width || !plotly()) return;
      const layout = sized(width, most);
      box.style.minHeight = `${layout.height}px`;
      plotly().react(box, traces(figure, asDark()), layout, SETTINGS);
      drawn = width;
    };
    const first = () => {
      near = true;
      watcher.disconnect();
      draw();
      if (!drawn) plotlyReady.then(() => drawn || draw());
    };
    const watcher = new IntersectionObserver(
      (seen) => seen.some((one) => one.isIntersecting) && first(), { rootMargin: "400px" },
    );
    place.append(el("figure", { class: "figure" }, el("figcaption", {}, el("b", {}, question), el("span", { class: "muted" }, about)), box));
    box.style.minHeight = `${sized(wide() || figure.layout.width).height}px`;
    watcher.observe(box);
    new ResizeObserver(() => near && !matchMedia("print").matches && wide() !== drawn && draw()).observe(box);
    onPaper((paper) => (paper ? draw(Math.min(PAPER, figure.layout.width), PAPER_HIGH) : draw()));
    document.addEventListener("theme", () => drawn && draw());
  }
}

drawFigures();
document.documentElement.dataset.ready = "";
