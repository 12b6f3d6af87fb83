"use strict";
// The confusion matrix and the cells behind it. Names are inserted as text, never as markup.
for (const run of document.querySelectorAll("[data-run]")) {
  const PAGE = 28;
  const { classes, domains, pictures, cells } = JSON.parse(run.querySelector("[data-listing]").textContent);
  const browser = run.querySelector("[data-browser]");
  const room = run.querySelector("[data-cells]");
  const more = run.querySelector("[data-more]");
  const filter = (name) => run.querySelector(`[data-filter="${name}"]`);
  let shown = PAGE;

  function element(tag, text) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function figure(cell, place) {
    const [actual, predicted, domain, file, told] = cell;
    const made = element("figure");
    const picture = place < pictures.length ? element("img") : element("span");
    if (place < pictures.length) picture.src = pictures[place];
    else picture.className = "nothing";
    const caption = element("figcaption");
    const verdict = actual === predicted ? classes[actual] : `${classes[actual]} predicted as ${classes[predicted]}`;
    const shares = told.map(([name, share]) => `${classes[name]} ${share.toFixed(2)}`).join(", ");
    caption.append(element("b", verdict), element("br"), shares, element("br"), element("code", file));
    made.title = domains[domain];
    made.append(picture, caption);
    return made;
  }

  function chosen() {
    const wanted = ["true", "predicted", "domain"].map((name) => filter(name).value);
    const wrong = filter("wrong").checked;
    const name = filter("name").value.toLowerCase();
    return [...cells.entries()].filter(([, cell]) =>
      wanted.every((value, column) => value === "" || cell[column] === Number(value))
      && (!wrong || cell[0] !== cell[1])
      && cell[3].toLowerCase().includes(name));
  }

  function draw() {
    const found = chosen();
    room.replaceChildren(...found.slice(0, shown).map(([place, cell]) => figure(cell, place)));
    run.querySelector("[data-count]").textContent = `${found.length} cells, ${Math.min(shown, found.length)} shown`;
    more.hidden = found.length <= shown;
    for (const button of run.querySelectorAll("table.matrix button")) {
      const pressed = button.dataset.true === filter("true").value
        && button.dataset.predicted === filter("predicted").value;
      button.setAttribute("aria-pressed", String(pressed));
    }
  }

  function redraw() {
    shown = PAGE;
    draw();
  }

  run.addEventListener("click", (event) => {
    const button = event.target.closest("table.matrix button");
    if (button === null) return;
    filter("true").value = button.dataset.true;
    filter("predicted").value = button.dataset.predicted;
    filter("wrong").checked = false;
    filter("name").value = "";
    redraw();
    browser.scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
  filter("set").addEventListener("change", () => {
    const set = filter("set").selectedOptions[0];
    for (const matrix of run.querySelectorAll("[data-matrix]")) matrix.hidden = matrix.dataset.matrix !== set.value;
    const domain = domains.indexOf(set.textContent);
    filter("domain").value = domain < 0 ? "" : String(domain);
    redraw();
  });
  for (const name of ["true", "predicted", "domain", "wrong", "name"]) filter(name).addEventListener("input", redraw);
  more.addEventListener("click", () => {
    shown += PAGE;
    draw();
  });
  filter("wrong").checked = true;
  browser.hidden = false;
  draw();
}
