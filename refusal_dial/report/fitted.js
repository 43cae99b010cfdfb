// A figure fitted to its box: its title as text that wraps, panels one below the other where they do
// not fit side by side, and colours that can be read on a dark page. Plotly is packed text until then.

const LIGHTER = {
  "#0072B2": "#56B4E9", "#8DBEDC": "#2F6C93", "#767676": "#9A9DA0", "#D55E00": "#F08A4B", "#009E73": "#3CC79A",
  "#A6761D": "#D9A441", "#6A3D9A": "#B08BE0", "#882255": "#D0577F", "#1B8A99": "#4FC3D1", "#000000": "#E9E9E7",
  "#808000": "#B9BC4F", "#8B5A4A": "#C99485",
};
const SETTINGS = { displaylogo: false, responsive: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
const NARROW = 0.66; // of the width that a figure was made for: below it panels are stacked
const PANEL = 270; // pixels of height of a stacked panel, with what is below it
const LOWEST = 160; // where a page is short
const BETWEEN = 70; // pixels that a panel's axis and the title of the next one take
const BAR = 76; // pixels of a colour bar that lies below, under the legend
const LINE = 16; // pixels that a line of a panel's title takes

let plotlyText = null;
const plotlyReady = unpacked("plotly").then((text) => (plotlyText = text));

// Plotly, or nothing while it is still being unpacked.
function plotly() {
  if (!window.Plotly && plotlyText) {
    const script = document.createElement("script");
    script.textContent = plotlyText;
    document.head.append(script);
    plotlyText = null;
  }
  return window.Plotly;
}

function traces(figure, dark) {
  if (!dark) return figure.data;
  return JSON.parse(JSON.stringify(figure.data).replace(/#[0-9A-F]{6}/g, (colour) => LIGHTER[colour] || colour));
}

const axesOf = (layout, letter) => Object.keys(layout).filter((name) => new RegExp(`^${letter}axis\\d*$`).test(name));

function coloured(layout, colours) {
  Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: layout.plot_bgcolor ? colours.line : "rgba(0,0,0,0)" });
  layout.font = { ...layout.font, color: colours.ink };
  for (const name of [...axesOf(layout, "x"), ...axesOf(layout, "y")]) {
    layout[name] = { ...layout[name], linecolor: colours.line, tickcolor: colours.line, color: colours.ink };
  }
  for (const shape of layout.shapes || []) {
    if (shape.line?.color === "#000000") shape.line.color = colours.ink;
  }
  for (const note of layout.annotations || []) note.font = { ...note.font, color: colours.ink };
  return layout;
}

// The question, and what it is about: plotly's own titles do not wrap.
function titleOf(figure) {
  const plain = (text) => text.replace(/<[^>]*>/g, "").replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  const [question, about = "", ...how] = (figure.layout.title?.text || "").split("<br><sup>");
  return [plain(question), [about, how.join(" ")].map(plain).join("\n").trim()];
}

const named = (data) => new Set(data.filter((one) => one.name && one.showlegend !== false).map((one) => one.legendgroup || one.name)).size;

// The panels of a figure, row by row: each x axis with the y axis it stands on.
function panelsOf(layout) {
  const found = axesOf(layout, "x").map((x) => ({ x, y: `yaxis${(layout[x].anchor || "y").slice(1)}` }));
  const known = found.filter(({ x, y }) => layout[x].domain && layout[y]?.domain);
  return known.sort((a, b) => layout[b.y].domain[1] - layout[a.y].domain[1] || layout[a.x].domain[0] - layout[b.x].domain[0]);
}

// A panel's title in lines of at most so many pixels, at about 6.4 a letter, 4.8 of small ones.
function broken(text, width) {
  const lines = text.split("<br>").map((line) => {
    const small = /^<sup>(.*)<\/sup>$/.exec(line), most = width / (small ? 4.8 : 6.4), parts = [""];
    for (const word of (small ? small[1] : line).split(" ")) {
      const longer = `${parts.at(-1)} ${word}`.trim();
      if (longer.length <= most || !parts.at(-1)) parts[parts.length - 1] = longer;
      else parts.push(word);
    }
    return parts.map((part) => (small ? `<sup>${part}</sup>` : part));
  });
  return lines.flat();
}

// One panel a row; its title goes with it, and it says what its axes are. `more` is how many lines
// the titles have beyond two.
function stacked(layout, panel, more) {
  const panels = panelsOf(layout), between = BETWEEN + LINE * more;
  const gap = Math.max(0.3, between / panel) / panels.length, high = (1 - gap * (panels.length - 1)) / panels.length;
  // An axis without a name has that of its column or row, else the first that there is.
  const label = (letter, own) => {
    const axes = axesOf(layout, letter), named = (some) => some.map((name) => layout[name].title?.text).find(Boolean);
    const same = axes.filter((name) => String(layout[name].domain) === String(layout[own].domain));
    return layout[own].title?.text || named(same) || named(axes);
  };
  const moves = panels.map(({ x, y }, i) => {
    const [left, right] = layout[x].domain, top = layout[y].domain[1], to = 1 - i * (high + gap);
    const notes = (layout.annotations || []).filter((note) => note.xref === "paper" &&
      Math.abs(note.x - (left + right) / 2) < 1e-6 && Math.abs(note.y - top) < 1e-6);
    const below = label("x", x), beside = label("y", y);
    return () => {
      layout[x] = { ...layout[x], domain: [0, 1], showticklabels: true, title: { ...layout[x].title, text: below } };
      layout[y] = { ...layout[y], domain: [Math.max(0, to - high), to], showticklabels: true, title: { ...layout[y].title, text: beside } };
      for (const note of notes) Object.assign(note, { x: 0.5, y: to, font: { ...note.font, size: 12 } });
    };
  });
  moves.forEach((move) => move());
  return panels.length;
}

// The layout in `width` pixels; `height` where the box has one of its own; stacked panels are lower
// where they so fit into `most`.
function fitted(figure, width, colours, height = null, most = Infinity) {
  const layout = coloured(structuredClone(figure.layout), colours);
  delete layout.title;
  const narrow = width < NARROW * figure.layout.width;
  const heads = (layout.annotations || []).some((note) => /<br>/.test(note.text || ""));
  const many = named(figure.data);
  let above = heads ? 56 : 36;
  let below = 84, more = 0, high = figure.layout.height - (figure.layout.margin?.t || 0) + above;
  if (narrow) {
    const panels = panelsOf(layout).length;
    below = 64 + 30 * Math.ceil(many / Math.max(1, Math.floor(width / 330)));
    if (layout.coloraxis) {
      const { title, ...bar } = layout.coloraxis.colorbar || {}, flat = title?.text?.replaceAll("<br>", " ");
      const place = { orientation: "h", x: 0.5, xanchor: "center", y: 0, yref: "container", yanchor: "bottom", thickness: 14 };
      layout.coloraxis = { ...layout.coloraxis, colorbar: { ...bar, ...place, title: { text: flat, side: "bottom" } } };
      below += BAR;
    }
    for (const note of (layout.annotations || []).filter((one) => one.xref === "paper")) {
      const lines = broken(note.text || "", width - 72);
      note.text = lines.join("<br>");
      more = Math.max(more, lines.length - 2);
    }
    above += LINE * Math.max(0, more);
    if (panels > 1) {
      const room = (most - above - below) / panels, panel = room < LOWEST ? PANEL : Math.min(PANEL, room);
      stacked(layout, panel, Math.max(0, more));
      high = above + below + panel * panels;
    } else high = Math.min(high, Math.max(340, high)) + below - 84;
    layout.margin = { ...layout.margin, l: 56, r: 16 };
  }
  layout.margin = { ...layout.margin, t: above, b: below };
  if (width < 560) layout.font = { ...layout.font, size: 12 };
  const tall = Math.max(high, height || 0);
  if (narrow && layout.coloraxis) layout.legend = { ...layout.legend, y: BAR / tall };
  return { ...layout, width, height: tall };
}
