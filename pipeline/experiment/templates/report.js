"use strict";
// Selects and tabs show one of several panels, checkboxes set a class on their section, a tap on a result shows the truth.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

for (const select of all("select[data-shows=metric]")) {
  select.addEventListener("change", () => {
    for (const panel of all("[data-metric]")) panel.hidden = panel.dataset.metric !== select.value;
  });
}

const tabs = all("#pictures .tabs button");
const mask = document.querySelector("select[data-shows=mask]");
const choosePictures = () => {
  const dataset = tabs.find((tab) => tab.getAttribute("aria-pressed") === "true").dataset.value;
  for (const panel of all("#pictures [data-mask]")) {
    panel.hidden = panel.dataset.dataset !== dataset || panel.dataset.mask !== mask.value;
  }
};
mask.addEventListener("change", choosePictures);
for (const tab of tabs) {
  tab.addEventListener("click", () => {
    for (const other of tabs) other.setAttribute("aria-pressed", String(other === tab));
    choosePictures();
  });
}

for (const box of all("input[data-toggles]")) {
  box.addEventListener("change", () => {
    document.getElementById(box.dataset.of).classList.toggle(box.dataset.toggles, box.checked);
  });
}

for (const button of all("button.pic")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  });
}
