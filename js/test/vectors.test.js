/** The test vectors of docs/concepts/sampling.md, which Python is tested against too. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  boxMuller,
  drawAcceptedLatents,
  drawLatents,
  findPlace,
  orderSet,
  orderStream,
  permute,
  philox,
  readAccepted,
  resolveCounts,
  splitSeed,
} from "../src/index.js";

const VERSIONS = JSON.parse(readFileSync(new URL("../../tests/golden/sampling.json", import.meta.url)));
const { 1: VECTORS, 2: VECTORS_2 } = VERSIONS;
const integers = (words) => words.map((word) => parseInt(word, 16));
const hex = (value) => value.toString(16).padStart(8, "0");
const bits = (values) => Array.from(new Uint32Array(Float32Array.from(values).buffer), hex);
const floats = (words) => new Float32Array(Uint32Array.from(integers(words)).buffer);
const pairs = ({ labels, indices }) => Array.from(labels, (label, row) => [label, indices[row]]);

test("every part of the vectors is tested here", () => {
  const source = readFileSync(new URL(import.meta.url), "utf8");
  assert.deepEqual(Object.keys(VERSIONS), ["1", "2"]);
  for (const part of Object.keys(VECTORS)) assert.ok(source.includes(`VECTORS.${part}`), part);
  for (const part of Object.keys(VECTORS_2)) assert.ok(source.includes(`VECTORS_2.${part}`), part);
});

test("philox", () => {
  for (const { key, counter, words } of VECTORS.philox) {
    assert.deepEqual(Array.from(philox(integers(key), integers(counter)), hex), words);
  }
});

test("Box-Muller", () => {
  for (const { words, normals } of VECTORS.box_muller) {
    boxMuller(...integers(words)).forEach((normal, i) => {
      assert.ok(Math.abs(normal - normals[i]) <= 1e-14 * Math.max(1, Math.abs(normals[i])), `${normal} ${normals[i]}`);
    });
  }
});

test("latents", () => {
  for (const { seed, class: label, index, latent_dim, latent_std, float32 } of VECTORS.latents) {
    assert.deepEqual(bits(drawLatents(seed, [label], [index], latent_dim, latent_std)), float32);
  }
});

test("a million latents", () => {
  const rows = Array.from({ length: 2 ** 14 }, (_, row) => row);
  const drawn = drawLatents(2026, rows.map((row) => row % 10), rows.map((row) => Math.floor(row / 10)), 64, 1);
  const digest = createHash("sha256").update(Buffer.from(drawn.buffer)).digest("hex");
  assert.equal(digest, VECTORS.latents_sha256);
});

test("fixed latents", () => {
  for (const { latents, seed, latent_std, samples, rows } of VECTORS.fixed_latents) {
    const shape = [latents.length, latents[0].length, latents[0][0].length];
    const fixed = { shape, data: floats(latents.flat(2)) };
    const [labels, indices] = [samples.map(([label]) => label), samples.map(([, index]) => index)];
    assert.deepEqual(bits(drawLatents(seed, labels, indices, shape[2], latent_std, fixed)), rows.flat());
  }
});

test("accepted candidates", () => {
  for (const { file, key, numbers } of VECTORS_2.accepted_file) {
    const accepted = readAccepted(new Uint8Array(Buffer.from(file, "hex")));
    assert.equal(accepted.key, BigInt(key));
    assert.deepEqual(accepted.numbers.map((row) => Array.from(row)), numbers);
  }
  for (const { seed, class: label, round, count, positions, places } of VECTORS_2.places) {
    assert.deepEqual(positions.map((position) => findPlace(seed, label, round, position, count)), places);
  }
  for (const { file, seed, class: label, index, latent_dim, latent_std, float32 } of VECTORS_2.accepted_latents) {
    const accepted = readAccepted(new Uint8Array(Buffer.from(file, "hex")));
    assert.deepEqual(bits(drawAcceptedLatents(accepted, seed, [label], [index], latent_dim, latent_std)), float32);
  }
  for (const file of ["", "00".repeat(16), "00".repeat(8) + "0100000008000000" + "00", "00".repeat(8) + "0100000008000000"]) {
    assert.throws(() => readAccepted(new Uint8Array(Buffer.from(file, "hex"))), /accepted\.bin/);
  }
});

test("counts", () => {
  for (const { class_counts, classes, ipc, ratio, total, per_class, counts } of VECTORS.counts) {
    const size = { ipc, ratio, total, perClass: per_class, labels: classes };
    assert.deepEqual(resolveCounts(class_counts, size), counts);
    if (ratio) assert.deepEqual(resolveCounts(class_counts, { ...size, ratio: Number(ratio) }), counts);
  }
});

test("orders", () => {
  for (const { counts, start, samples } of VECTORS.orders) assert.deepEqual(pairs(orderSet(counts, start)), samples);
});

test("permutations", () => {
  for (const { seed, epoch, n, order } of VECTORS.permutations) {
    assert.deepEqual(Array.from(permute(seed, epoch, n)), order);
  }
});

test("streams", () => {
  for (const { batch_size, start_epoch, batches, ...plan } of VECTORS.streams) {
    const drawn = orderStream({ ...plan, batchSize: batch_size, startEpoch: start_epoch });
    assert.deepEqual(Array.from(drawn, pairs), batches);
  }
});

test("what cannot be is refused in a sentence", () => {
  for (const seed of [-1, 2 ** 53, 1n << 64n, 1.5, "x", ""]) assert.throws(() => splitSeed(seed), /The seed is .*2\^64 - 1/);
  assert.deepEqual(splitSeed("18446744073709551615"), [0xffffffff, 0xffffffff]);
  assert.throws(() => resolveCounts([1, 2], {}), /0 were given/);
  assert.throws(() => resolveCounts([1, 2], { ipc: 1, total: 3 }), /2 were given/);
  assert.throws(() => resolveCounts([1, 0], { ratio: 0.5 }), /does not say how many/);
  assert.throws(() => resolveCounts([1, 2], { ratio: "-1" }), /above 0/);
  assert.throws(() => resolveCounts([1, 2], { ratio: 0 }), /at least one image/);
  assert.throws(() => resolveCounts([1, 2], { total: 1 }), /at least one image/);
  assert.throws(() => resolveCounts([1, 2], { ipc: 1.5 }), /whole numbers/);
  assert.throws(() => Array.from(orderStream({ labels: [0], ipc: 0 })), /ipc is 0/);
  assert.throws(() => Array.from(orderStream({ labels: [0], ipc: 1, shard: [1, 1] })), /shard is 1,1/);
  const last = orderStream({ labels: [0], ipc: 2 ** 10, batchSize: 2 ** 10, startEpoch: 2 ** 22 - 1 });
  assert.equal(last.next().value.indices.reduce((a, b) => Math.max(a, b)), 2 ** 32 - 1);
  assert.throws(() => last.next(), /beyond 2\^32/);
});
