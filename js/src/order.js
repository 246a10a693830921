/**
 * Which samples a set and a stream hold, in which order. docs/concepts/sampling.md is the specification.
 */

import { permute } from "./philox.js";

const MAX_PER_CLASS = 2 ** 32;

/**
 * Images per class of a set, from exactly one of `ipc`, `ratio`, `total` and `perClass`.
 * @param {number[]} classCounts source images of every class
 * @param {{ ipc?: number, ratio?: number | string, total?: number, perClass?: number[], labels?: number[] | null }} size
 *   `labels` are the chosen classes, ascending; all where left out. A ratio may be text: "0.02".
 * @returns {number[]} one number for every class
 */
export function resolveCounts(classCounts, { ipc, ratio, total, perClass, labels = null }) {
  const given = [ipc, ratio, total, perClass].filter((value) => value !== undefined);
  if (given.length !== 1) {
    throw new RangeError(`Say the size of a set by one of ipc, ratio, total and perClass; ${given.length} were given.`);
  }
  const chosen = labels ?? classCounts.map((_, label) => label);
  let counts = classCounts.map(() => 0);
  if (perClass !== undefined) counts = [...perClass];
  else if (ipc !== undefined) for (const label of chosen) counts[label] = ipc;
  else for (const [label, count] of share(classCounts, chosen, ratio, total)) counts[label] = count;
  const wrong = counts.find((count) => !Number.isInteger(count) || count < 0 || count > MAX_PER_CLASS);
  if (counts.length !== classCounts.length || wrong !== undefined || !counts.some(Boolean)) {
    throw new RangeError(`The images per class are ${counts}; they must be ${classCounts.length} whole numbers.`);
  }
  return counts;
}

/** Round a ratio or a total by largest remainder, in exact fractions. */
function share(classCounts, chosen, ratio, total) {
  const source = BigInt(chosen.reduce((sum, label) => sum + classCounts[label], 0));
  if (chosen.some((label) => !(classCounts[label] >= 1))) {
    throw new RangeError("The bundle does not say how many images of each class its source had; give ipc or perClass.");
  }
  const [numerator, denominator] = ratio === undefined ? [BigInt(total), source] : parseDecimal(ratio);
  let size = BigInt(total ?? 0);
  if (ratio !== undefined) {
    size = (2n * numerator * source + denominator) / (2n * denominator);
    if (size < BigInt(chosen.length)) size = BigInt(chosen.length);
  }
  if (numerator <= 0n || size < BigInt(chosen.length)) {
    throw new RangeError(`A set of ${chosen.length} classes has at least one image of each; ask for more.`);
  }
  // Every number below is times the denominator.
  const quotas = new Map(chosen.map((label) => [label, numerator * BigInt(classCounts[label])]));
  const counts = new Map(chosen.map((label) => [label, largest(1n, quotas.get(label) / denominator)]));
  for (;;) {
    const missing = Number(size - [...counts.values()].reduce((sum, count) => sum + count, 0n));
    if (missing === 0) return [...counts].map(([label, count]) => [label, Number(count)]);
    const excess = (label) => counts.get(label) * denominator - quotas.get(label);
    const order = [...chosen].sort((a, b) => compare(excess(a), excess(b)) || a - b);
    const changed = missing > 0 ? order : order.reverse().filter((label) => counts.get(label) > 1n);
    const step = missing > 0 ? 1n : -1n;
    for (const label of changed.slice(0, Math.abs(missing))) counts.set(label, counts.get(label) + step);
  }
}

/** A decimal number as an exact fraction. */
function parseDecimal(value) {
  const match = /^\+?(\d*)\.?(\d*)(?:[eE]([+-]?\d{1,3}))?$/.exec(String(value).trim());
  if (!match || !(match[1] + match[2])) throw new RangeError(`The ratio is ${value}; it must be a number above 0.`);
  const exponent = Number(match[3] ?? 0) - match[2].length;
  const digits = BigInt(match[1] + match[2]);
  return exponent < 0 ? [digits, 10n ** BigInt(-exponent)] : [digits * 10n ** BigInt(exponent), 1n];
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const largest = (a, b) => (a > b ? a : b);

/**
 * The samples of a set in order: index 0 of every class that has one, then index 1, and so on.
 * @param {number[]} counts images per class
 * @param {number} [start] the first index
 * @returns {{ labels: Int32Array, indices: Float64Array }}
 */
export function orderSet(counts, start = 0) {
  const size = counts.reduce((sum, count) => sum + count, 0);
  const [labels, indices] = [new Int32Array(size), new Float64Array(size)];
  let row = 0;
  for (let i = 0; row < size; i++) {
    for (let label = 0; label < counts.length; label++) {
      if (i < counts[label]) [labels[row], indices[row++]] = [label, start + i];
    }
  }
  return { labels, indices };
}

/**
 * The samples of every batch of a stream.
 * @param {{ labels: number[], ipc: number, batchSize?: number, seed?: number | bigint | string, startEpoch?: number,
 *   epochs?: number, shard?: [number, number] }} plan `labels` are the chosen classes, ascending; without `epochs` the
 *   stream goes on for ever.
 * @yields {{ labels: Int32Array, indices: Float64Array }}
 */
export function* orderStream({ labels, ipc, batchSize = 64, seed = 0, startEpoch = 0, epochs = Infinity, shard = [0, 1] }) {
  for (const [name, value, low] of [["ipc", ipc, 1], ["batchSize", batchSize, 1], ["startEpoch", startEpoch, 0]]) {
    if (!Number.isInteger(value) || value < low) {
      throw new RangeError(`${name} is ${value}; it must be an integer, at least ${low}.`);
    }
  }
  const [first, step] = shard;
  if (!Number.isInteger(first) || !Number.isInteger(step) || first < 0 || first >= step) {
    throw new RangeError(`shard is ${shard}; it must be [i, n] with 0 <= i < n.`);
  }
  for (let epoch = startEpoch; epoch < startEpoch + epochs; epoch++) {
    if ((epoch + 1) * ipc > MAX_PER_CLASS) {
      throw new RangeError(`Epoch ${epoch} of ${ipc} images per class needs indices beyond 2^32.`);
    }
    const positions = permute(seed, epoch, labels.length * ipc).filter((_, position) => position % step === first);
    for (let start = 0; start < positions.length; start += batchSize) {
      const part = positions.subarray(start, start + batchSize);
      yield {
        labels: Int32Array.from(part, (position) => labels[position % labels.length]),
        indices: Float64Array.from(part, (position) => epoch * ipc + Math.floor(position / labels.length)),
      };
    }
  }
}
