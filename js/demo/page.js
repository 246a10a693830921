/** The demo page: draws digits, packs a set, trains a classifier; all work is done by worker.js. */

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
let facts;

/** Ask the worker; `report` gets its progress. */
function ask(task, wish = {}, report = () => {}) {
  return new Promise((resolve, reject) => {
    const id = waiting.size ? Math.max(...waiting.keys()) + 1 : 1;
    waiting.set(id, { resolve, reject, report });
    worker.postMessage({ id, task, wish });
  });
}

worker.onmessage = ({ data: { id, result, error, progress } }) => {
  const { resolve, reject, report } = waiting.get(id);
  if (progress) return report(progress);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
};
worker.onerror = (event) => fail(new Error(event.message || "The worker could not be started."));

function fail(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
}

/** Run a task, its button off while it runs; an error becomes a sentence on the page. */
async function work(button, task) {
  button.disabled = true;
  $("error").hidden = true;
  try {
    await task();
  } catch (error) {
    fail(error);
  } finally {
    button.disabled = false;
  }
}

/** A whole number of a field, as text; an error says what the field takes. */
function readWhole(id, what, least, most) {
  const text = $(id).value.trim();
  const fits = /^[0-9]{1,20}$/.test(text) && BigInt(text) >= BigInt(least) && BigInt(text) <= BigInt(most);
  if (fits) return text;
  const found = $(id).validity.badInput ? "is no number" : text ? `is ${text.slice(0, 40)}` : "is empty";
  throw new Error(`The ${what} ${found}; it must be a whole number from ${least} to ${most}.`);
}

const readNumber = (id, what, least) => Number(readWhole(id, what, least, $(id).max));
const readSeed = (id) => readWhole(id, "seed", 0, 2n ** 64n - 1n);

/** An image as a canvas of its own size; the style sheet enlarges it. */
function show(pixels) {
  const { height, width, channels } = facts;
  const canvas = Object.assign(document.createElement("canvas"), { height, width });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let p = 0; p < height * width; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = pixels[channels * p + (channels === 1 ? 0 : c)];
    image.data[4 * p + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

const cut = (images, row) => {
  const pixels = facts.height * facts.width * facts.channels;
  return images.subarray(row * pixels, (row + 1) * pixels);
};

async function draw() {
  const chosen = $("class").value;
  const labels = chosen === "all" ? facts.classes.map((_, label) => label) : [Number(chosen)];
  const [first, count] = [readNumber("first", "first number", 0), chosen === "all" ? 12 : 60];
  const wish = { seed: readSeed("seed"), labels: [], indices: [] };
  for (const label of labels) {
    for (let i = 0; i < count; i++) {
      wish.labels.push(label);
      wish.indices.push(first + i);
    }
  }
  const began = performance.now();
  const images = await ask("draw", wish);
  const seconds = (performance.now() - began) / 1000;
  $("drawn").classList.toggle("rows", chosen === "all");
  $("drawn").replaceChildren(...wish.labels.map((_, row) => show(cut(images, row))));
  $("speed").textContent = `${wish.labels.length} digits in ${seconds.toFixed(2)} s, in this browser.`;
}

async function pack() {
  const ipc = readNumber("ipc", "number of images per class", 1);
  const zip = await ask("pack", { ipc, seed: readSeed("set-seed") }, ({ done, total }) => {
    $("packed").textContent = `${done} of ${total} images`;
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([zip], { type: "application/zip" }));
  link.download = `${facts.name}-${ipc}-per-class.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  $("packed").textContent = `${link.download}: ${(ipc * facts.classes.length).toLocaleString("en")} images, ${Math.ceil(zip.length / 1000).toLocaleString("en")} kB`;
}

async function train() {
  const points = [];
  const wish = { images: readNumber("train-images", "number of generated digits", 500), seed: readSeed("train-seed") };
  for (const id of ["accuracy", "seen", "time"]) $(id).textContent = "-";
  plot(points, wish.images);
  $("stop").disabled = false;
  const done = ask("train", wish, ({ images, accuracy, seconds, predicted }) => {
    points.push([images, accuracy]);
    $("accuracy").textContent = `${accuracy.toFixed(1)} %`;
    $("seen").textContent = images.toLocaleString("en");
    $("time").textContent = `${seconds.toFixed(0)} s`;
    plot(points, wish.images);
    mark(predicted);
  });
  await done.finally(() => ($("stop").disabled = true));
}

/** The accuracy over the images seen, as a line. */
function plot(points, end) {
  const x = (images) => 50 + (570 * images) / end;
  const y = (accuracy) => 190 - 1.8 * accuracy;
  $("line").setAttribute("points", points.map(([images, accuracy]) => `${x(images)},${y(accuracy)}`).join(" "));
  $("end").textContent = `${end.toLocaleString("en")} images`;
}

/** Mark the digits that are taken for another. */
function mark(predicted) {
  const { labels } = facts.digits;
  Array.from($("digits").children).forEach((figure, row) => {
    const wrong = predicted[row] !== labels[row];
    figure.classList.toggle("wrong", wrong);
    figure.title = wrong ? `${facts.classes[labels[row]]}, taken for ${facts.classes[predicted[row]]}` : facts.classes[labels[row]];
  });
  const mistakes = predicted.filter((label, row) => label !== labels[row]).length;
  $("mistakes").textContent = `${mistakes} of ${labels.length} are taken for another digit; they are marked.`;
}

async function open() {
  facts = await ask("open");
  for (const [label, name] of facts.classes.entries()) $("class").add(new Option(name, label));
  $("digits").replaceChildren(...facts.digits.labels.map((_, row) => show(cut(facts.digits.images, row))));
  $("bundle").textContent = `Generator: ${(facts.bytes / 1e6).toFixed(2)} MB (int8). Content id ${facts.content_id}.`;
  $("licence").textContent = facts.licence;
  for (const id of ["draw", "pack", "train"]) $(id).disabled = false;
  await work($("draw"), draw);
  document.body.dataset.ready = "yes";
}

$("draw").onclick = () => work($("draw"), draw);
for (const id of ["class", "seed", "first"]) $(id).onchange = () => work($("draw"), draw);
$("pack").onclick = () => work($("pack"), pack);
$("train").onclick = () => work($("train"), train);
$("stop").onclick = () => ask("stop");
open().catch(fail);
