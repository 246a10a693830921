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

const whole = (id, most) => Math.min(Math.max(0, Math.floor(Number($(id).value) || 0)), most);

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
  const [first, count] = [whole("first", 2 ** 32 - 100), chosen === "all" ? 12 : 60];
  const wish = { seed: $("seed").value, labels: [], indices: [] };
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
  const ipc = Math.max(1, whole("ipc", 1000));
  const zip = await ask("pack", { ipc, seed: $("set-seed").value }, ({ done, total }) => {
    $("packed").textContent = `${done} of ${total} images`;
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([zip], { type: "application/zip" }));
  link.download = `${facts.name}-${ipc}-per-class.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  $("packed").textContent = `${link.download}: ${ipc * facts.classes.length} images, ${(zip.length / 1e6).toFixed(1)} MB`;
}

async function train() {
  const points = [];
  $("stop").disabled = false;
  const wish = { seed: $("train-seed").value, images: Math.max(500, whole("train-images", 50_000)) };
  await ask("train", wish, ({ images, accuracy, seconds, predicted }) => {
    points.push([images, accuracy]);
    $("accuracy").textContent = `${accuracy.toFixed(1)} %`;
    $("seen").textContent = images.toLocaleString("en");
    $("time").textContent = `${seconds.toFixed(0)} s`;
    plot(points, wish.images);
    mark(predicted);
  });
  $("stop").disabled = true;
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
