/** The bundle that comes with the Python package: hashes, and pixels beside Python's. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";

import * as ort from "onnxruntime-web/wasm";

import { BundleError, openBundle, readNpz } from "../src/index.js";
import { fromFolder } from "../src/node.js";

ort.env.wasm.numThreads = 1;
const read = fromFolder(new URL("../../runtime/shipped/mnist.dim", import.meta.url).pathname);
let bundle, golden;

before(async () => {
  bundle = await openBundle(read, { ort });
  golden = await readNpz(new Uint8Array(readFileSync(new URL("../../tests/golden/mnist.npz", import.meta.url))));
});
after(() => bundle.close());

/** The bundle with one of its files changed. */
const altered = (name, change) => async (wanted) => (wanted === name ? change(await read(wanted)) : read(wanted));
const replaced = (from, to) =>
  altered("manifest.json", (bytes) => new TextEncoder().encode(new TextDecoder().decode(bytes).replace(from, to)));

test("pixels are Python's", async () => {
  const [labels, indices] = [golden.labels, golden.indices].map(({ data }) => Array.from(data, Number));
  const drawn = await bundle.sample(labels, indices, { seed: 7 });
  const expected = golden.images.data;
  assert.equal(drawn.length, expected.length);
  const differences = drawn.map((value, i) => Math.abs(value - expected[i]));
  const [worst, count] = [Math.max(...differences), differences.filter(Boolean).length];
  console.log(`${count} of ${drawn.length} values differ from Python's, by ${worst} of 255 at most`);
  assert.ok(worst <= 1 && count < drawn.length / 100);
});

test("fixed latents are used for fixed sets alone, and can be switched off", async () => {
  assert.equal(bundle.numFixedLatents, 64);
  const plain = await openBundle(read, { ort, fixedLatents: false });
  assert.equal(plain.numFixedLatents, 0);
  const [fixed, drawn, stream] = await Promise.all([
    bundle.sample([3], [0]),
    plain.sample([3], [0]),
    bundle.sample([3], [0], { use: "stream" }),
  ]);
  assert.deepEqual(drawn, stream);
  assert.notDeepEqual(drawn, fixed);
  assert.deepEqual(await bundle.sample([3], [64]), await plain.sample([3], [64]));
  await plain.close();
});

test("a set is a prefix of a larger one, and a stream yields batches", async () => {
  const [small, large] = [await bundle.arrays({ ipc: 1, seed: 3 }), await bundle.arrays({ ipc: 2, seed: 3 })];
  assert.deepEqual(small.images, large.images.subarray(0, small.images.length));
  assert.deepEqual(Array.from(large.labels), [...Array(20).keys()].map((row) => row % 10));
  const batches = [];
  for await (const batch of bundle.stream({ ipc: 1, batchSize: 8, epochs: 2, labels: [1, 4, 7] })) batches.push(batch);
  assert.deepEqual(batches.map(({ labels }) => labels.length), [3, 3]);
  assert.equal(batches[0].images.length, 3 * 28 * 28);
  const again = await bundle.sample(batches[1].labels, batches[1].indices, { use: "stream" });
  assert.deepEqual(again, batches[1].images);
});

test("int8 draws the same digits", async () => {
  const small = await openBundle(read, { ort, precision: "int8" });
  const [a, b] = [await small.sample([0, 1, 2], [5, 5, 5]), await bundle.sample([0, 1, 2], [5, 5, 5])];
  const error = a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0) / a.length;
  assert.ok(10 * Math.log10(255 ** 2 / error) >= 30);
  await small.close();
});

test("an altered bundle is refused in a sentence", async () => {
  const flipped = (bytes) => bytes.map((byte, i) => (i === 1000 ? byte ^ 1 : byte));
  const refused = [
    [altered("generator.fp32.onnx", flipped), /generator\.fp32\.onnx was altered: its SHA-256/],
    [altered("latents.npz", flipped), /latents\.npz was altered/],
    [replaced('"name": "mnist"', '"name": "other"'), /The manifest was altered: .* manifest_sha256/],
    [replaced(/^ {2}"format_version": 1/m, '"format_version": 2'), /format version 2, and 1 can be read here: use a newer/],
    [replaced('"sampling_version": 1', '"sampling_version": 3'), /sampling version 3, and 1 and 2 can be read here/],
    [replaced('"sampling_version": 1', '"sampling_version": 2'), /field sampling is missing or out of range/],
    [replaced(/"classes": \[[^\]]*\]/, '"classes": 5'), /field classes is missing or out of range/],
    [altered("manifest.json", (bytes) => bytes.subarray(9)), /not UTF-8 JSON/],
    [fromFolder("/nowhere"), /manifest\.json cannot be read \(ENOENT\)/],
  ];
  for (const [reader, message] of refused) {
    await assert.rejects(openBundle(reader, { ort }), (error) => error instanceof BundleError && message.test(error.message), `${message}`);
  }
  await assert.rejects(openBundle(read, { ort, precision: "int4" }), /no generator in the precision int4/);
  await assert.rejects(readNpz(new Uint8Array(30)), /no directory at its end/);
});

test("a label that is no class is refused", async () => {
  await assert.rejects(bundle.sample([10], [0]), /no class 10; labels go from 0 to 9/);
  await assert.rejects(bundle.sample([0], [2 ** 32]), /The index is 4294967296/);
  await assert.rejects(bundle.sample([0, 1], [0]), /2 labels and 1 indices/);
});
