// Tables that sort and filter, a page of rows at a time; on paper, more of them.

const ROWS = 25, PAPER_ROWS = 200;
const MANY = 20; // columns from which a table is in small print on paper

function tableElement({ caption, columns, rows }) {
  const state = { by: -1, down: false, page: 0, rows: ROWS, menus: columns.map(() => ""), sought: "" };
  const plain = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const text = (cell, digits = null) => {
    if (typeof cell !== "number") return cell === null ? "" : String(cell);
    return digits === null ? short(cell) : number(cell, digits);
  };
  const body = el("tbody"), count = el("span", { class: "muted", role: "status" });
  const heads = columns.map((column, c) => {
    const sort = el("button", { type: "button", onclick: () => {
      state.down = state.by === c && !state.down;
      state.by = c;
      draw();
    } }, column.name);
    return el("th", { scope: "col", class: column.kind === "text" ? null : "number" }, sort);
  });
  const back = el("button", { type: "button", onclick: () => { state.page -= 1; draw(); } }, "Back");
  const next = el("button", { type: "button", onclick: () => { state.page += 1; draw(); } }, "Next");

  function matching() {
    const found = rows.filter((row) =>
      state.menus.every((wanted, c) => !wanted || text(plain(row[c])) === wanted) &&
      (!state.sought || row.map((cell) => text(plain(cell))).join(" ").toLowerCase().includes(state.sought)));
    if (state.by < 0) return found;
    const value = (row) => plain(row[state.by]);
    const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b)));
    const ranked = found.filter((row) => value(row) !== null).sort((a, b) => order(value(a), value(b)));
    if (state.down) ranked.reverse();
    return [...ranked, ...found.filter((row) => value(row) === null)];
  }

  function cellElement(cell, { kind, digits }) {
    if (kind !== "interval" || plain(cell) === null) {
      return el("td", { class: kind === "text" ? null : "number" }, text(plain(cell), digits));
    }
    const span = cell[1] === null ? "" : ` [${text(cell[1], digits)}, ${text(cell[2], digits)}]`;
    return el("td", { class: "number" }, text(cell[0], digits), el("small", {}, span));
  }

  function draw() {
    const found = matching(), last = Math.max(0, Math.ceil(found.length / state.rows) - 1);
    state.page = Math.min(Math.max(0, state.page), last);
    const from = state.page * state.rows, part = found.slice(from, from + state.rows);
    body.replaceChildren(...part.map((row) => el("tr", {}, ...row.map((cell, c) => cellElement(cell, columns[c])))));
    heads.forEach((head, c) =>
      head.setAttribute("aria-sort", state.by !== c ? "none" : state.down ? "descending" : "ascending"));
    heads.forEach((head, c) => {
      head.firstChild.textContent = columns[c].name + (state.by !== c ? "" : state.down ? " ↓" : " ↑");
    });
    count.textContent = `${found.length ? from + 1 : 0} to ${from + part.length} of ${found.length} rows`;
    back.disabled = state.page === 0;
    next.disabled = state.page === last;
  }

  const filters = el("form", { class: "filters", "aria-label": `Filter ${caption}`, onsubmit: (e) => e.preventDefault() },
    el("label", {}, "Search ", el("input", { type: "search", "aria-label": "Search", oninput: (event) => {
      state.sought = event.target.value.trim().toLowerCase();
      draw();
    } })));
  columns.forEach((column, c) => {
    if (!column.menu) return;
    const values = [...new Set(rows.map((row) => text(plain(row[c]))))].filter(Boolean);
    const select = el("select", { "aria-label": column.name, onchange: (event) => {
      state.menus[c] = event.target.value;
      draw();
    } });
    filters.append(el("label", {}, column.name, select));
    choices(select, values, "all");
    if (column.name === "direction" && values.includes("learned")) state.menus[c] = select.value = "learned";
  });
  draw();
  onPaper((paper) => {
    Object.assign(state, { rows: paper ? PAPER_ROWS : ROWS, page: 0 });
    draw();
  });
  return el("div", { class: "table" }, el("h3", {}, caption), filters,
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      el("table", { class: columns.length > MANY ? "many" : null }, el("thead", {}, el("tr", {}, ...heads)), body)),
    el("div", { class: "pages" }, back, next, count));
}

byId("tables").append(...DATA.tables.map(tableElement));
