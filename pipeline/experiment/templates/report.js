"use strict";
// On every page: a select shows one of several panels, a checkbox sets a class, a tap on a result shows the truth.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const pressed = (button) => button.getAttribute("aria-pressed") === "true";
const press = (button, down) => button.setAttribute("aria-pressed", String(down));

for (const select of all("select[data-shows=metric]")) {
  const choose = () => {
    for (const panel of all("[data-metric]")) panel.hidden = panel.dataset.metric !== select.value;
  };
  select.addEventListener("change", choose);
  choose(); // a browser may restore the choice of the last visit
}

for (const box of all("input[data-toggles]")) {
  const toggle = () => document.getElementById(box.dataset.of).classList.toggle(box.dataset.toggles, box.checked);
  box.addEventListener("change", toggle);
  toggle();
}

for (const button of all("button.pic")) button.addEventListener("click", () => press(button, !pressed(button)));
