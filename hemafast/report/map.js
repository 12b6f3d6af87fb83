"use strict";
// Points on a canvas, the cell under the pointer, and a region saved as a table. Names are inserted as text, never as markup.
(() => {
  const read = (name) => JSON.parse(document.querySelector(`[data-${name}]`).textContent);
  const { points, columns, colours, names, confidence, side, row } = read("listing");
  const sheets = read("atlases").map((address) => Object.assign(new Image(), { src: address }));
  const cells = names.length;
  const STEPS = 65535;
  const GRID = 128; // squares along an axis, to find the nearest point
  const NEAR = 12; // px
  const SHOWN = 60; // pictures of selected cells
  const ZOOM = 1.2;
  // Okabe and Ito's colours, then lighter and darker ones.
  const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D00", "#7F7F7F", "#5B3A99",
    "#B0413E", "#2F6B4F", "#9FB8D0", "#C7A76C"];
  const find = (selector) => document.querySelector(selector);
  const [canvas, tip, legend, picker] = [find(".map canvas"), find(".tip"), find("[data-legend]"), find("[data-colour]")];
  const pen = canvas.getContext("2d");
  const view = { x: 0, y: 0, scale: 1 };
  let [by] = columns;
  let hidden = new Set();
  let selected = [];
  let drag = null;

  const grid = Array.from({ length: GRID * GRID }, () => []);
  let [wide, high] = [1, 1]; // of the map
  const squareOf = (value) => Math.min(GRID - 1, Math.floor((value * GRID) / (STEPS + 1)));
  for (let cell = 0; cell < cells; cell += 1) {
    wide = Math.max(wide, points[2 * cell]);
    high = Math.max(high, points[2 * cell + 1]);
    grid[squareOf(points[2 * cell + 1]) * GRID + squareOf(points[2 * cell])].push(cell);
  }

  const kindOf = (cell) => (by === undefined ? 0 : colours[by].of[cell]);
  const kindIn = (name, cell) => colours[name].names[colours[name].of[cell]];
  const isShown = (cell) => !hidden.has(kindOf(cell));
  const colourOf = (kind) => PALETTE[kind % PALETTE.length];
  const toScreen = (cell) => [points[2 * cell] * view.scale + view.x, points[2 * cell + 1] * view.scale + view.y];
  const toMap = (x, y) => [(x - view.x) / view.scale, (y - view.y) / view.scale];

  function showAll() {
    const { width, height } = canvas.getBoundingClientRect();
    view.scale = 0.92 * Math.min(width / wide, height / high);
    view.x = (width - wide * view.scale) / 2;
    view.y = (height - high * view.scale) / 2;
  }

  function draw() {
    const { width, height } = canvas.getBoundingClientRect();
    const dense = devicePixelRatio || 1;
    canvas.width = width * dense;
    canvas.height = height * dense;
    pen.scale(dense, dense);
    const size = cells > 10000 ? 2 : cells > 1000 ? 4 : 7;
    const kinds = by === undefined ? 1 : colours[by].names.length;
    const chosen = new Set(selected);
    for (let kind = 0; kind < kinds; kind += 1) {
      if (hidden.has(kind)) continue;
      pen.fillStyle = colourOf(kind);
      for (let cell = 0; cell < cells; cell += 1) {
        if (kindOf(cell) !== kind) continue;
        const [x, y] = toScreen(cell);
        const own = chosen.has(cell) ? size + 3 : size;
        pen.fillRect(x - own / 2, y - own / 2, own, own);
      }
    }
    if (drag && drag.selects) {
      pen.strokeStyle = getComputedStyle(document.body).color;
      pen.strokeRect(drag.fromX, drag.fromY, drag.x - drag.fromX, drag.y - drag.fromY);
    }
  }

  let waiting = false;
  function redraw() { // once a frame, however many events there are
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  function nearest(x, y) {
    const [left, top] = toMap(x - NEAR, y - NEAR).map((value) => squareOf(Math.max(0, value)));
    const [right, bottom] = toMap(x + NEAR, y + NEAR).map((value) => squareOf(Math.max(0, value)));
    let [best, least] = [-1, NEAR * NEAR];
    for (let line = top; line <= bottom; line += 1) {
      for (let column = left; column <= right; column += 1) {
        for (const cell of grid[line * GRID + column]) {
          const [cellX, cellY] = toScreen(cell);
          const far = (cellX - x) ** 2 + (cellY - y) ** 2;
          if (far < least && isShown(cell)) [best, least] = [cell, far];
        }
      }
    }
    return best;
  }

  function picture(cell, size) {
    const made = document.createElement("canvas");
    const place = cell % (row * row);
    const sheet = sheets[Math.floor(cell / (row * row))];
    const corner = [(place % row) * side, Math.floor(place / row) * side];
    const paint = () => made.getContext("2d").drawImage(sheet, ...corner, side, side, 0, 0, size, size);
    made.className = "tile";
    made.width = made.height = size;
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", names[cell]);
    if (sheet.complete) paint();
    else sheet.addEventListener("load", paint, { once: true });
    return made;
  }

  function told(cell) {
    const lines = columns.map((name) => `${name}: ${kindIn(name, cell)}`);
    return [...lines, `confidence: ${confidence[cell]}`, names[cell]];
  }

  function caption(cell, tag, size) {
    const made = document.createElement(tag);
    made.append(picture(cell, size));
    for (const line of told(cell)) {
      const part = document.createElement("div");
      part.textContent = line;
      made.append(part);
    }
    return made;
  }

  function hover(x, y) {
    const cell = nearest(x, y);
    tip.hidden = cell < 0;
    if (cell < 0) return;
    tip.replaceChildren(...caption(cell, "div", 120).childNodes);
    const room = canvas.getBoundingClientRect();
    tip.style.left = `${Math.min(x + 14, room.width - 210)}px`;
    tip.style.top = `${y > room.height / 2 ? Math.max(0, y - 260) : y + 14}px`;
  }

  function select(found) {
    selected = found;
    find("[data-count]").textContent = found.length === 0 ? "Nothing is selected"
      : `${found.length} ${found.length === 1 ? "cell is" : "cells are"} selected`;
    find("[data-save]").disabled = found.length === 0;
    find("[data-selected]").replaceChildren(...found.slice(0, SHOWN).map((cell) => caption(cell, "figure", 96)));
    redraw();
  }

  function within() {
    const [left, top] = toMap(Math.min(drag.fromX, drag.x), Math.min(drag.fromY, drag.y));
    const [right, bottom] = toMap(Math.max(drag.fromX, drag.x), Math.max(drag.fromY, drag.y));
    const found = [];
    for (let cell = 0; cell < cells; cell += 1) {
      const [x, y] = [points[2 * cell], points[2 * cell + 1]];
      if (x >= left && x <= right && y >= top && y <= bottom && isShown(cell)) found.push(cell);
    }
    return found;
  }

  // A cell of a spreadsheet that begins so would be calculated.
  const quoted = (text) => `"${(/^[=+\-@]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

  function table() {
    const lines = selected.map((cell) => [names[cell], ...columns.map((name) => kindIn(name, cell)), String(confidence[cell])]);
    return [["image", ...columns, "confidence"], ...lines].map((line) => line.map(quoted).join(",")).join("\r\n");
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`\ufeff${table()}\r\n`], { type: "text/csv" }));
    link.download = "cells.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function writeLegend() {
    const kinds = by === undefined ? [] : colours[by].names;
    legend.replaceChildren(...kinds.map((name, kind) => {
      const [item, button, swatch] = ["li", "button", "span"].map((tag) => document.createElement(tag));
      swatch.className = "swatch";
      swatch.style.background = colourOf(kind);
      button.type = "button";
      button.setAttribute("aria-pressed", String(!hidden.has(kind)));
      button.append(swatch, `${name} (${colours[by].of.filter((own) => own === kind).length})`);
      button.addEventListener("click", () => {
        if (!hidden.delete(kind)) hidden.add(kind);
        button.setAttribute("aria-pressed", String(!hidden.has(kind)));
        redraw();
      });
      item.append(button);
      return item;
    }));
  }

  for (const name of columns) picker.append(new Option(name, name));
  picker.addEventListener("change", () => { by = picker.value; hidden = new Set(); writeLegend(); redraw(); });
  find("[data-save]").addEventListener("click", save);
  find("[data-whole]").addEventListener("click", () => { showAll(); redraw(); });
  canvas.addEventListener("pointerdown", (event) => {
    const selects = find("[name=drag]:checked").value === "select";
    const [x, y] = [event.offsetX, event.offsetY];
    drag = { selects, x, y, fromX: x, fromY: y };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    if (drag === null) {
      hover(x, y);
      return;
    }
    if (!drag.selects) {
      view.x += x - drag.x;
      view.y += y - drag.y;
    }
    Object.assign(drag, { x, y });
    tip.hidden = true;
    redraw();
  });
  canvas.addEventListener("pointerup", () => {
    const found = drag !== null && drag.selects ? within() : null;
    const moved = drag !== null && (Math.abs(drag.x - drag.fromX) > 3 || Math.abs(drag.y - drag.fromY) > 3);
    const at = drag === null ? -1 : nearest(drag.x, drag.y);
    drag = null;
    if (found !== null) select(moved ? found : [at].filter((cell) => cell >= 0));
  });
  canvas.addEventListener("pointercancel", () => { drag = null; redraw(); });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const factor = event.deltaY < 0 ? ZOOM : 1 / ZOOM;
    view.x = event.offsetX - (event.offsetX - view.x) * factor;
    view.y = event.offsetY - (event.offsetY - view.y) * factor;
    view.scale *= factor;
    redraw();
  }, { passive: false });
  addEventListener("resize", () => { showAll(); redraw(); });
  writeLegend();
  showAll();
  draw();
})();
