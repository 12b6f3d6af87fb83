"use strict";
// The confusion matrix and the cells behind it. Names are inserted as text, never as markup.
for (const run of document.querySelectorAll("[data-run]")) {
  const PAGE = 28;
  const { classes, domains, pictures, overlays, cells } = JSON.parse(run.querySelector("[data-listing]").textContent);
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

  const JOINTS = /(?<=[_/-])(?=\w)/; // where a long name may break, as in pages.py

  function jointed(made, name) {
    for (const [place, part] of name.split(JOINTS).entries()) made.append(...(place ? [element("wbr")] : []), part);
    return made;
  }

  function picture(address, alt) {
    const made = element("img");
    made.src = address;
    made.alt = alt;
    return made;
  }

  function figure(cell, place) {
    const [actual, predicted, domain, file, told] = cell;
    const made = element("figure");
    const verdict = actual === predicted ? classes[actual] : `${classes[actual]} predicted as ${classes[predicted]}`;
    if (place < pictures.length) made.append(picture(pictures[place], `${verdict}: ${file}`));
    else made.append(Object.assign(element("span"), { className: "nothing" }));
    if (place < overlays.length) made.append(picture(overlays[place], `Grad-CAM of ${classes[predicted]} in ${file}`));
    const caption = element("figcaption");
    const shares = told.map(([name, share]) => `${classes[name]} ${share.toFixed(2)}`).join(", ");
    caption.append(jointed(element("b"), verdict), element("br"), jointed(element("span"), shares), element("br"));
    caption.append(jointed(element("code"), file));
    made.title = domains[domain];
    made.append(caption);
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

  // The filter for the domain that the matrix shows; no filter if it shows all.
  function matrixDomain() {
    const domain = domains.indexOf(filter("set").selectedOptions[0].textContent);
    return domain < 0 ? "" : String(domain);
  }

  function draw() {
    const found = chosen();
    room.replaceChildren(...found.slice(0, shown).map(([place, cell]) => figure(cell, place)));
    const noun = found.length === 1 ? "cell" : "cells";
    run.querySelector("[data-count]").textContent = `${found.length} ${noun}, ${Math.min(shown, found.length)} shown`;
    more.hidden = found.length <= shown;
    for (const button of run.querySelectorAll("table.matrix button")) {
      const pressed = button.dataset.true === filter("true").value
        && button.dataset.predicted === filter("predicted").value
        && matrixDomain() === filter("domain").value;
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
    filter("domain").value = matrixDomain();
    filter("wrong").checked = false;
    filter("name").value = "";
    redraw();
    browser.scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
  filter("set").addEventListener("change", () => {
    const set = filter("set").value;
    for (const matrix of run.querySelectorAll("[data-matrix]")) matrix.hidden = matrix.dataset.matrix !== set;
    filter("domain").value = matrixDomain();
    redraw();
  });
  for (const name of ["true", "predicted", "domain", "wrong", "name"]) filter(name).addEventListener("input", redraw);
  more.addEventListener("click", () => {
    shown += PAGE;
    draw();
  });
  filter("wrong").checked = true;
  for (const control of browser.querySelectorAll("[hidden]")) control.hidden = control === more;
  draw();
}
