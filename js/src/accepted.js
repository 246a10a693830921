/**
 * Sampling version 2: samples are candidates that were accepted when the bundle was made. docs/concepts/sampling.md is
 * the specification.
 */

import { BundleError } from "./manifest.js";
import { drawLatents, philox, splitSeed } from "./philox.js";

const STREAM_PLACES = 32;
const FEISTEL_STEPS = 6;
const [KEPT, FRESH] = [24 / 25, 7 / 25];
const MAX_CANDIDATES = 2 ** 24;

/**
 * Read `accepted.bin`.
 * @param {Uint8Array} bytes
 * @returns {{ key: bigint, numbers: Uint32Array[] }} the accepted numbers of every class, ascending
 */
export function readAccepted(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [classes, perClass] = bytes.length < 16 ? [0, 0] : [view.getUint32(8, true), view.getUint32(12, true)];
  const fits = classes > 0 && perClass > 0 && perClass % 8 === 0 && classes * perClass <= MAX_CANDIDATES;
  if (!fits || bytes.length !== 16 + (classes * perClass) / 8) {
    throw new BundleError("accepted.bin has another length than its head says.");
  }
  const numbers = Array.from({ length: classes }, (_, label) => {
    const row = bytes.subarray(16 + (label * perClass) / 8, 16 + ((label + 1) * perClass) / 8);
    const found = [];
    row.forEach((byte, i) => {
      for (let bit = 0; bit < 8; bit++) if ((byte >> bit) & 1) found.push(8 * i + bit);
    });
    return Uint32Array.from(found);
  });
  if (numbers.some((row) => row.length === 0)) throw new BundleError("accepted.bin accepts no candidate of some class.");
  return { key: view.getBigUint64(0, true), numbers };
}

/**
 * The place of a position: a permutation of 0 to count - 1 for each seed, class and round.
 * @returns {number}
 */
export function findPlace(seed, label, round, position, count) {
  const key = splitSeed(seed);
  const words = new Uint32Array(4);
  const leftSize = Math.ceil(Math.sqrt(count));
  const rightSize = Math.ceil(count / leftSize);
  let place = position;
  do {
    let [left, right] = [Math.floor(place / rightSize), place % rightSize];
    for (let step = 0; step < FEISTEL_STEPS; step++) {
      const even = step % 2 === 0;
      philox(key, [even ? right : left, STREAM_PLACES + step, label, round], words);
      if (even) left = (left + words[0]) % leftSize;
      else right = (right + words[0]) % rightSize;
    }
    place = left * rightSize + right;
  } while (place >= count);
  return place;
}

/**
 * The latents of samples of version 2; arguments as `drawLatents`, which draws the rest.
 * @param {{ key: bigint, numbers: Uint32Array[] }} accepted
 * @returns {Float32Array} N * Z values
 */
export function drawAcceptedLatents(accepted, seed, labels, indices, latentDim, latentStd, fixed = null) {
  const latents = new Float32Array(labels.length * latentDim);
  const numFixed = fixed ? fixed.shape[1] : 0;
  for (let row = 0; row < labels.length; row++) {
    const [label, index] = [labels[row], indices[row]];
    const plain = () => drawLatents(seed, [label], [index], latentDim, latentStd, fixed);
    if (index < numFixed) {
      latents.set(plain(), row * latentDim);
      continue;
    }
    const numbers = accepted.numbers[label];
    const round = Math.floor(index / numbers.length);
    const place = findPlace(seed, label, round, index % numbers.length, numbers.length);
    const drawn = drawLatents(accepted.key, [label], [numbers[place]], latentDim, latentStd);
    const fresh = round > 0 ? plain() : null;
    for (let z = 0; z < latentDim; z++) {
      latents[row * latentDim + z] = fresh ? drawn[z] * KEPT + fresh[z] * FRESH : drawn[z];
    }
  }
  return latents;
}
