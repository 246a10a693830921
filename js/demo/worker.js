/** Draws, packs and trains away from the page, which stays free to answer its user. */

import * as ort from "./ort/ort.wasm.min.mjs";

import { Classifier } from "./classifier.js";
import { fromUrl, openBundle, readNpz } from "./dim/index.js";
import { encodePng, writeZip } from "./files.js";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
ort.env.wasm.numThreads = 1;

const HIDDEN = 128;
const LEARNING_RATE = 3e-3; // at the start; it falls to 0 in a straight line
const BATCHES_PER_DRAWN = 6; // drawing takes as long as five steps of training, so images are shown again
let bundle, digits, training;

const tasks = {
  async open() {
    bundle = await openBundle(fromUrl(new URL("./mnist.dim", import.meta.url)), { ort, precision: "int8" });
    const answer = await fetch(new URL("./test-digits.npz", import.meta.url));
    const { images, labels } = await readNpz(new Uint8Array(await answer.arrayBuffer()));
    digits = { images: images.data, labels: Array.from(labels.data, Number) };
    const { name, content_id, licence, files } = bundle.manifest;
    const { classes, height, width, channels, numFixedLatents } = bundle;
    const bytes = files["generator.int8.onnx"].size_bytes;
    return { name, content_id, licence, classes, height, width, channels, numFixedLatents, bytes, digits };
  },

  draw: ({ labels, indices, seed }) => bundle.sample(labels, indices, { seed }),

  async pack({ ipc, seed }, report) {
    const { height, width, channels, classes, manifest } = bundle;
    const { images, labels, indices } = await bundle.arrays({ ipc, seed });
    const pixels = height * width * channels;
    const members = [];
    for (let row = 0; row < labels.length; row++) {
      const content = await encodePng(images.subarray(row * pixels, (row + 1) * pixels), bundle);
      members.push({ name: `${folderName(classes, labels[row])}/${String(indices[row]).padStart(8, "0")}.png`, content });
      if (row % 50 === 0) report({ done: row, total: labels.length });
    }
    const { name, content_id, licence } = manifest;
    const about = { bundle: name, content_id, licence, seed, images_per_class: ipc, precision: "int8", classes };
    members.push({ name: "about.json", content: new TextEncoder().encode(JSON.stringify(about, null, 2) + "\n") });
    return writeZip(members);
  },

  async train({ seed, images: wanted }, report) {
    const mine = (training = {});
    const pixels = bundle.height * bundle.width * bundle.channels;
    const classifier = new Classifier(pixels, HIDDEN, bundle.classes.length);
    const seen = { images: new Uint8Array(wanted * pixels), labels: new Int32Array(wanted), count: 0 };
    const began = performance.now();
    const tell = () => {
      const predicted = classifier.predict(digits.images);
      const correct = predicted.reduce((sum, label, i) => sum + (label === digits.labels[i]), 0);
      const seconds = (performance.now() - began) / 1000;
      report({ images: seen.count, accuracy: (100 * correct) / predicted.length, seconds, predicted });
    };
    for await (const { images, labels } of bundle.stream({ ipc: 10, batchSize: 50, seed })) {
      if (training !== mine || seen.count + labels.length > wanted) break;
      classifier.learningRate = LEARNING_RATE * (1 - seen.count / wanted);
      seen.images.set(images, seen.count * pixels);
      seen.labels.set(labels, seen.count);
      seen.count += labels.length;
      for (let i = 0; i < BATCHES_PER_DRAWN; i++) {
        const first = i === 0 ? seen.count - labels.length : null;
        classifier.train(...chooseBatch(seen, labels.length, first));
      }
      if (seen.count % 500 === 0) tell();
      await new Promise((resolve) => setTimeout(resolve)); // lets a click on Stop through
    }
    if (seen.count % 500 !== 0) tell();
    return { images: seen.count };
  },

  stop() {
    training = undefined;
  },
};

/** A batch of the images seen, from `first` on or at random, each shifted by up to one pixel. */
function chooseBatch(seen, size, first) {
  const { height, width, channels } = bundle;
  const [row, pixels] = [width * channels, height * width * channels];
  const [images, labels] = [new Uint8Array(size * pixels), new Int32Array(size)];
  for (let i = 0; i < size; i++) {
    const from = first === null ? Math.floor(Math.random() * seen.count) : first + i;
    const [down, right] = [Math.floor(Math.random() * 3) - 1, Math.floor(Math.random() * 3) - 1];
    for (let y = Math.max(0, down); y < Math.min(height, height + down); y++) {
      const line = from * pixels + (y - down) * row;
      const kept = seen.images.subarray(line + Math.max(0, -right) * channels, line + Math.min(width, width - right) * channels);
      images.set(kept, i * pixels + y * row + Math.max(0, right) * channels);
    }
    labels[i] = seen.labels[from];
  }
  return [images, labels];
}

/** A class's folder; a name that could lead elsewhere becomes its label. */
function folderName(classes, label) {
  return /^[\p{L}\p{N}_ -]{1,80}$/u.test(classes[label]) ? classes[label] : `class-${label}`;
}

self.onmessage = async ({ data: { id, task, wish } }) => {
  try {
    const result = await tasks[task](wish, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
