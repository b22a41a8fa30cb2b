// The page of pictures: `state` says what is seen, `draw` shows it, buttons, keys, swipes and the address change it.
const data = JSON.parse(document.getElementById("data").textContent);
const viewer = document.getElementById("viewer");
const SVG = "http://www.w3.org/2000/svg";
const state = { dataset: 0, mask: 0, image: 0, rows: "image", shows: "result" };

const make = (tag, attributes = {}, ...inner) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inner);
  return element;
};

const hatch = (name) => {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("viewBox", `0 0 ${viewer.dataset.size} ${viewer.dataset.size}`);
  svg.setAttribute("class", "hatch");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#${name}`);
  use.setAttribute("fill", "url(#hatch)");
  svg.append(use);
  return svg;
};

// A name that may be broken after its underscores.
const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, make("wbr")]);

const tile = (name, picture, ...caption) =>
  make("figure", { class: "tile", "data-method": name }, picture, make("figcaption", {}, ...breakable(name), ...caption));

// One image under one mask: input, truth, and what every method made of it.
const line = (dataset, mask, image) => {
  const shown = dataset.grids[mask][image];
  const truth = dataset.truths[shown.truth];
  const base = (alt) => make("img", { class: "truth", src: truth, alt });
  const tiles = [
    tile("input", make("div", { class: "pic" }, base(`${shown.id}, hidden pixels hatched`), hatch(shown.hidden))),
    tile("truth", make("div", { class: "pic" }, base(`${shown.id}, truth`))),
  ];
  data.methods.forEach((method, index) => {
    const label = `${method} on ${shown.id}: ${data.metric} ${shown.scores[index]}; press for the truth`;
    const button = make("button", { type: "button", class: "pic", "aria-pressed": "false", "aria-label": label }, base(""));
    button.append(make("img", { class: "result", src: shown.results[index], alt: "" }), hatch(shown.hidden));
    button.addEventListener("click", () => press(button, !pressed(button)));
    tiles.push(tile(method, button, make(shown.best[index] ? "b" : "span", {}, shown.scores[index])));
  });
  const columns = state.rows === "image" && tiles.length > 6 ? Math.ceil(tiles.length / 2) : tiles.length;
  const attributes = { "data-image": shown.id, "data-mask": data.masks[mask], style: `--columns:${columns}` };
  return make("div", { class: "line", ...attributes }, ...tiles);
};

const lines = () => {
  const dataset = data.datasets[state.dataset];
  const images = dataset.grids[state.mask].map((_, image) => image);
  if (state.rows === "images") {
    return images.map((image) => [dataset.grids[state.mask][image].id, line(dataset, state.mask, image)]);
  }
  if (state.rows === "masks") return data.masks.map((name, mask) => [name, line(dataset, mask, state.image)]);
  return [["", line(dataset, state.mask, state.image)]];
};

const draw = () => {
  const dataset = data.datasets[state.dataset];
  const shown = dataset.grids[state.mask];
  state.image = Math.min(state.image, shown.length - 1); // datasets may have different numbers of images
  const drawn = lines().map(([name, row]) => (name ? [make("h2", {}, name), row] : [row]));
  viewer.replaceChildren(...drawn.flat());
  Object.assign(viewer.dataset, { dataset: dataset.name, mask: data.masks[state.mask], rows: state.rows, shows: state.shows });
  const image = `image ${state.image + 1} of ${shown.length}, ${shown[state.image].id}`;
  const parts = [dataset.name, state.rows === "masks" ? "all masks" : data.masks[state.mask]];
  parts.push(state.rows === "images" ? `all ${shown.length} images` : image);
  document.getElementById("where").textContent = parts.join(" · ");
  for (const group of all("[data-choice]")) {
    for (const button of all("button", group)) press(button, button.dataset.value === String(state[group.dataset.choice]));
  }
  for (const button of all("[data-turns]")) button.disabled = state.rows === "images";
};

const address = () => {
  const names = [data.datasets[state.dataset].name, data.masks[state.mask]].map(encodeURIComponent);
  history.replaceState(null, "", `#${names.join("/")}/${state.image + 1}`);
};

const change = (changes) => {
  Object.assign(state, changes);
  draw();
  address();
};

const turned = (index, by, count) => (index + by + count) % count;
const turn = (by) => change({ image: turned(state.image, by, data.datasets[state.dataset].grids[state.mask].length) });
const turnMask = (by) => change({ mask: turned(state.mask, by, data.masks.length) });

// #faces/left/3; what is not named there is the first of its kind.
const read = () => {
  const [dataset, mask, image] = location.hash.slice(1).split("/");
  state.dataset = Math.max(0, data.datasets.findIndex(({ name }) => encodeURIComponent(name) === dataset));
  state.mask = Math.max(0, data.masks.findIndex((name) => encodeURIComponent(name) === mask));
  state.image = Math.max(0, (Number(image) || 1) - 1);
  draw();
};

const KEYS = {
  ArrowLeft: () => turn(-1),
  ArrowRight: () => turn(1),
  ArrowUp: () => turnMask(-1),
  ArrowDown: () => turnMask(1),
  d: () => change({ dataset: turned(state.dataset, 1, data.datasets.length) }),
  r: () => change({ shows: "result" }),
  t: () => change({ shows: "truth" }),
  i: () => change({ shows: "input" }),
};

for (const group of all("[data-choice]")) {
  for (const button of all("button", group)) {
    const value = Number.isNaN(Number(button.dataset.value)) ? button.dataset.value : Number(button.dataset.value);
    button.addEventListener("click", () => change({ [group.dataset.choice]: value }));
  }
}
for (const button of all("[data-turns]")) button.addEventListener("click", () => turn(Number(button.dataset.turns)));

document.addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || !(key in KEYS)) return;
  event.preventDefault();
  KEYS[key]();
});

let start = null;
viewer.addEventListener("touchstart", (event) => (start = event.changedTouches[0]), { passive: true });
viewer.addEventListener("touchend", (event) => {
  const end = event.changedTouches[0];
  const [x, y] = [end.clientX - start.clientX, end.clientY - start.clientY];
  if (Math.abs(x) > 50 && Math.abs(x) > 2 * Math.abs(y) && state.rows !== "images") turn(x < 0 ? 1 : -1);
}, { passive: true });

addEventListener("hashchange", read);
read();
