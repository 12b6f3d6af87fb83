"use strict";
// Points on a canvas, the cell under the pointer, and a region saved as a table. Names are inserted as text, never as markup.
(() => {
  const read = (name) => JSON.parse(document.querySelector(`[data-${name}]`).textContent);
  const { points, columns, colours, names, confidence, side, row } = read("listing");
  const atlases = read("atlases");
  const sheets = []; // of these, those that were asked for: each is decoded when its first cell is shown
  const cells = names.length;
  const STEPS = 65535;
  const GRID = 128; // squares along an axis, to find the nearest point
  const NEAR = 12; // px
  const SHOWN = 60; // pictures of selected cells
  const ZOOM = 1.2;
  // Okabe and Ito's colours, then lighter and darker ones.
  const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C6D00", "#7F7F7F", "#5B3A99",
    "#B0413E", "#2F6B4F", "#9FB8D0", "#C7A76C"];
  const INKS = PALETTE.map((colour) => { // as the canvas holds them: bytes of red, green, blue and opacity
    const part = (place) => parseInt(colour.slice(place, place + 2), 16);
    return new Uint32Array(new Uint8Array([part(1), part(3), part(5), 255]).buffer)[0];
  });
  const find = (selector) => document.querySelector(selector);
  const [canvas, tip, legend, picker] = [find(".map canvas"), find(".tip"), find("[data-legend]"), find("[data-colour]")];
  const pen = canvas.getContext("2d");
  const view = { x: 0, y: 0, scale: 1 };
  let by; // the column that gives the colours, if there is one
  let hidden = new Set();
  let order = []; // of the cells: those of one colour after those of another
  let selected = [];
  const chosen = new Uint8Array(cells); // 1 if selected
  let screen = null; // what the canvas shows, a number for each pixel
  let drag = null;

  const grid = Array.from({ length: GRID * GRID }, () => []);
  let [wide, high] = [1, 1]; // of the map
  let dense = 1; // pixels of the screen in one of the page
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

  function zoom(factor, x, y) { // what lies under x and y stays there
    view.x = x - (x - view.x) * factor;
    view.y = y - (y - view.y) * factor;
    view.scale *= factor;
    redraw();
  }

  function fit() { // the canvas to its room
    const { width, height } = canvas.getBoundingClientRect();
    dense = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(width * dense));
    canvas.height = Math.max(1, Math.round(height * dense));
    pen.scale(dense, dense);
    const image = pen.createImageData(canvas.width, canvas.height);
    screen = { image, pixels: new Uint32Array(image.data.buffer) };
  }

  function square(middleX, middleY, side, ink) {
    const [left, top] = [Math.round(middleX - side / 2), Math.round(middleY - side / 2)];
    const [right, bottom] = [Math.min(left + side, canvas.width), Math.min(top + side, canvas.height)];
    for (let y = Math.max(0, top); y < bottom; y += 1) {
      for (let x = Math.max(0, left); x < right; x += 1) screen.pixels[y * canvas.width + x] = ink;
    }
  }

  // Squares are set in an array of pixels: a call of the canvas for each of 50,000 cells takes many times as long.
  function draw() {
    const size = cells > 10000 ? 2 : cells > 1000 ? 4 : 7;
    const [scale, left, top] = [view.scale * dense, view.x * dense, view.y * dense];
    screen.pixels.fill(0);
    for (const cell of order) {
      const kind = kindOf(cell);
      if (hidden.has(kind)) continue;
      const side = Math.round((chosen[cell] ? size + 3 : size) * dense);
      square(points[2 * cell] * scale + left, points[2 * cell + 1] * scale + top, side, INKS[kind % INKS.length]);
    }
    pen.putImageData(screen.image, 0, 0);
    if (drag && drag.selects) {
      pen.strokeStyle = getComputedStyle(document.body).color;
      pen.strokeRect(drag.fromX, drag.fromY, drag.x - drag.fromX, drag.y - drag.fromY);
    }
  }

  function colourBy(name) {
    by = name;
    hidden = new Set();
    order = Array.from({ length: cells }, (_, cell) => cell);
    if (by !== undefined) order.sort((one, other) => kindOf(one) - kindOf(other));
    writeLegend();
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

  function sheetOf(place) {
    sheets[place] ??= Object.assign(new Image(), { src: atlases[place] });
    return sheets[place];
  }

  function picture(cell, size) {
    const made = document.createElement("canvas");
    const place = cell % (row * row);
    const sheet = sheetOf(Math.floor(cell / (row * row)));
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
    chosen.fill(0);
    for (const cell of found) chosen[cell] = 1;
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
    const counts = kinds.map(() => 0);
    for (const kind of by === undefined ? [] : colours[by].of) counts[kind] += 1;
    legend.replaceChildren(...kinds.map((name, kind) => {
      const [item, button, swatch] = ["li", "button", "span"].map((tag) => document.createElement(tag));
      swatch.className = "swatch";
      swatch.style.background = colourOf(kind);
      button.type = "button";
      button.setAttribute("aria-pressed", String(!hidden.has(kind)));
      button.append(swatch, `${name} (${counts[kind]})`);
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
  picker.addEventListener("change", () => { colourBy(picker.value); redraw(); });
  find("[data-save]").addEventListener("click", save);
  for (const button of document.querySelectorAll("[data-zoom]")) {
    const factor = button.dataset.zoom === "in" ? 2 : 1 / 2;
    button.addEventListener("click", () => zoom(factor, canvas.clientWidth / 2, canvas.clientHeight / 2));
  }
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
    zoom(event.deltaY < 0 ? ZOOM : 1 / ZOOM, event.offsetX, event.offsetY);
  }, { passive: false });
  addEventListener("resize", () => { fit(); showAll(); redraw(); });
  colourBy(columns[0]);
  fit();
  showAll();
  draw();
})();
