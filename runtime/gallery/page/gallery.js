/** The gallery's page: asks the server beside it for JSON and PNG, and shows whatever a bundle says as text. */

const $ = (id) => document.getElementById(id);
const COLUMNS = 32; // images in a line of a sheet; the server has the same number
const STEPS = 33;
const MOST_ROWS = 20;
const MOST_IMAGES = 2000;
let facts;
let path = []; // the images between two samples
let shown = 0; // counts requests, so that a late answer does not replace a newer one
let attempts = 0; // likewise, so that a late success does not hide a newer error

async function ask(name, query = {}) {
  const answer = await fetch(`${name}?${new URLSearchParams(query)}`).catch(() => null);
  if (!answer) throw new Error("The gallery no longer answers: start dim view again.");
  if (!answer.ok) throw new Error((await answer.json()).error);
  return name.endsWith(".png") ? answer.blob() : answer.json();
}

function fail(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

/** Do something; an error becomes a sentence on the page, and is gone with the next success. The newest attempt counts. */
async function attempt(task) {
  const turn = ++attempts;
  try {
    await task();
    if (turn === attempts) $("error").hidden = true;
  } catch (error) {
    if (turn === attempts) fail(error);
  }
}

function element(name, text, properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text, ...properties });
}

/** Cut a sheet into canvases of one image each. */
async function cut(blob, count) {
  const sheet = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const { height, width } = facts.image;
  return Array.from({ length: count }, (_, i) => {
    const canvas = Object.assign(document.createElement("canvas"), { height, width });
    const columns = Math.min(count, COLUMNS);
    const [x, y] = [(i % columns) * width, Math.floor(i / columns) * height];
    canvas.getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height);
    return canvas;
  });
}

/** The classes that are chosen, as many as one page shows. */
const chosenLabels = () =>
  $("class").value === "" ? facts.classes.map((_, label) => label).slice(0, MOST_ROWS) : [Number($("class").value)];

function wish(more = {}) {
  return {
    seed: $("seed").value,
    start: $("start").value,
    count: $("count").value,
    std: $("std").value,
    fixed: $("fixed").checked ? "1" : "0",
    ...more,
  };
}

async function showGrid() {
  const turn = ++shown;
  const labels = chosenLabels();
  const drawn = await ask("images.png", wish({ labels: labels.join(",") }));
  const count = Number($("count").value);
  const images = await cut(drawn, labels.length * count);
  const real = facts.real !== null && $("real").checked ? await Promise.all(labels.map(askReal)) : [];
  if (turn !== shown) return;
  $("grid").replaceChildren(...labels.map((label, i) => makeRow(label, images.slice(i * count, (i + 1) * count), real[i])));
  const hidden = facts.num_classes - labels.length;
  $("cut").hidden = $("class").value !== "" || hidden <= 0;
  $("cut").textContent = `${hidden.toLocaleString("en")} more classes are not shown: choose one above.`;
}

async function askReal(label) {
  const blob = await ask("real.png", { labels: label, count: $("count").value });
  const { width, height } = await createImageBitmap(blob);
  return cut(blob, Math.round((width * height) / (facts.image.width * facts.image.height)));
}

function makeRow(label, images, real) {
  const name = facts.classes[label];
  const start = Number($("start").value);
  const row = element("div", "", { className: "row" });
  const cells = element("div", "", { className: "images" });
  images.forEach((canvas, i) => {
    const button = element("button", "", { title: `${name}, index ${start + i}` });
    button.setAttribute("aria-label", `Class ${name}, index ${start + i}`);
    button.append(canvas);
    button.onclick = () => {
      attempt(() => choose(label, start + i));
      $("closer").scrollIntoView({ block: "nearest" });
    };
    cells.append(button);
  });
  row.append(element("span", name), cells);
  if (real) {
    const beside = element("div", "", { className: "images real" });
    beside.append(...real);
    row.append(element("span", "real", { className: "muted" }), beside);
  }
  return row;
}

/** Look closer at one image, from which the slider starts. */
async function choose(label, index) {
  $("from").value = index;
  if ($("to").value === $("from").value) $("to").value = index + 1;
  $("one").dataset.label = label;
  for (const button of document.querySelectorAll("#grid button")) {
    button.setAttribute("aria-pressed", button.title === `${facts.classes[label]}, index ${index}`);
  }
  $("place").value = 0;
  await showPath();
}

async function showPath() {
  const label = $("one").dataset.label ?? String(chosenLabels()[0]);
  const query = wish({ labels: label, start: $("from").value, count: 1 });
  path = await cut(await ask("between.png", { ...query, end: $("to").value, steps: STEPS }), STEPS);
  $("one-name").textContent = `Class ${facts.classes[label]}`;
  $("strip").replaceChildren(...path.filter((_, i) => i % 4 === 0).map((canvas) => copy(canvas)));
  showPlace();
  if (facts.real === null) return;
  const { neighbours, png } = await ask("nearest.json", query);
  const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
  const images = await cut(new Blob([bytes], { type: "image/png" }), neighbours.length);
  $("nearest").replaceChildren(
    ...images.map((canvas, i) => {
      const figure = element("figure", "");
      const { label: found, distance } = neighbours[i];
      figure.append(canvas, element("figcaption", facts.classes[found]), element("figcaption", distance.toFixed(1)));
      return figure;
    }),
  );
}

function showPlace() {
  const place = Number($("place").value);
  const canvas = copy(path[place]);
  const where = place === 0 ? `index ${$("from").value}` : place === STEPS - 1 ? `index ${$("to").value}` : `${Math.round((100 * place) / (STEPS - 1))} % of the way`;
  $("one").replaceChildren(canvas, element("figcaption", where));
  Array.from($("strip").children).forEach((each, i) => each.classList.toggle("here", i === Math.round(place / 4)));
}

function copy(canvas) {
  const other = Object.assign(document.createElement("canvas"), { height: canvas.height, width: canvas.width });
  other.getContext("2d").drawImage(canvas, 0, 0);
  return other;
}

async function showCommand() {
  const labels = $("class").value === "" ? "" : $("class").value;
  const { command, images } = await ask("command.json", wish({ labels, out: $("out").value, format: $("format").value }));
  $("command").textContent = command;
  $("save").textContent = `Save ${images.toLocaleString("en")} images`;
}

async function save() {
  $("save").disabled = true;
  $("saved").textContent = "Saving.";
  try {
    const labels = $("class").value === "" ? "" : $("class").value;
    const body = JSON.stringify(wish({ labels, out: $("out").value, format: $("format").value }));
    const answer = await fetch("set", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const result = await answer.json();
    if (!answer.ok) throw new Error(result.error);
    $("saved").textContent = `${result.images.toLocaleString("en")} images are in ${result.out}.`;
    $("saved").className = "done";
  } catch (error) {
    $("saved").textContent = error.message;
    $("saved").className = "error";
  } finally {
    $("save").disabled = false;
  }
}

function showStd() {
  const usual = Number($("std").value) === facts.latent_std;
  $("std-value").textContent = `${Number($("std").value).toFixed(2)}${usual ? ", the bundle's own" : ""}`;
  $("std-reset").hidden = usual;
  const kept = $("fixed").checked && Number($("start").value) < facts.fixed_latents;
  $("std-note").hidden = usual || !kept;
}

async function showAll() {
  showStd();
  $("saved").textContent = "";
  $("count").max = Math.floor(MOST_IMAGES / chosenLabels().length);
  const parts = await Promise.allSettled([showGrid(), showPath(), showCommand()]);
  const refused = parts.find(({ status }) => status === "rejected");
  if (refused) throw refused.reason;
}

function showFacts() {
  const { image, source } = facts;
  const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`;
  const files = Object.entries(facts.files).filter(([name]) => name.endsWith(".onnx"));
  const rows = {
    images: `${image.height} x ${image.width}, ${image.channels === 1 ? "grey" : "colour"}`,
    classes: facts.num_classes.toLocaleString("en"),
    source: `${source.name}, ${source.images.toLocaleString("en")} training images`,
    licence: facts.licence,
    size: `${megabytes(facts.size_bytes)} in all; ${files.map(([name, bytes]) => `${name} ${megabytes(bytes)}`).join(", ")}`,
    "content id": facts.content_id,
    "real images": facts.real ?? "none: start dim view with --data to see them beside the generated ones",
  };
  for (const [name, text] of Object.entries(rows)) {
    const row = element("tr", "");
    row.append(element("th", name), element("td", text));
    $("facts").append(row);
  }
  for (const line of facts.accuracy) {
    const row = element("tr", "");
    row.append(element("td", line.network), element("td", line.mode));
    for (const cell of [line.ipc, line.generated, line.real]) row.append(element("td", cell, { className: "number" }));
    $("accuracy").append(row);
    $("accuracy-recipe").textContent = `Trained by recipe ${line.recipe}, ${line.epochs.toLocaleString("en")} epochs.`;
  }
  $("accuracy-part").hidden = facts.accuracy.length === 0;
}

async function open() {
  facts = await ask("facts.json");
  document.title = facts.name;
  $("name").textContent = facts.name;
  $("lead").textContent = `${facts.num_classes.toLocaleString("en")} classes of ${facts.source.name}, drawn by a generator.`;
  $("class").add(new Option(facts.num_classes > MOST_ROWS ? `first ${MOST_ROWS}` : "all", ""));
  facts.classes.forEach((name, label) => $("class").add(new Option(name, label)));
  for (const format of facts.formats) $("format").add(new Option(format, format));
  $("out").value = `${facts.name.replace(/[^\w-]+/g, "-") || "bundle"}-set`;
  const step = facts.latent_std / 20;
  Object.assign($("std"), { min: 2 * step, max: 40 * step, step, value: facts.latent_std });
  $("fixed-label").hidden = facts.fixed_latents === 0;
  $("fixed-text").textContent = `Fixed latents (first ${facts.fixed_latents})`;
  $("std-note").textContent = `The first ${facts.fixed_latents} images have latents of their own, which the std does not change: untick Fixed latents to see its effect.`;
  $("real-label").hidden = $("nearest-part").hidden = facts.real === null;
  showFacts();
  $("main").hidden = false;
  await showAll();
  document.body.dataset.ready = "yes";
}

for (const id of ["count", "seed", "start", "fixed", "real"]) $(id).onchange = () => attempt(showAll);
$("class").onchange = () => {
  delete $("one").dataset.label;
  attempt(showAll);
};
$("std").oninput = showStd;
$("std").onchange = () => attempt(showAll);
$("std-reset").onclick = () => {
  $("std").value = facts.latent_std;
  attempt(showAll);
};
$("from").onchange = $("to").onchange = () => attempt(showPath);
$("place").oninput = showPlace;
$("out").onchange = $("format").onchange = () => {
  $("saved").textContent = "";
  attempt(showCommand);
};
$("save").onclick = save;
attempt(open);
