/**
 * Philox4x32-10, and the latents and shuffles that come from it. docs/concepts/sampling.md is the specification.
 */

const TWO_32 = 2 ** 32;

/**
 * The four random words of a counter.
 * @param {ArrayLike<number>} key two words
 * @param {ArrayLike<number>} counter four words
 * @param {Uint32Array} [out] where the words go
 * @returns {Uint32Array} `out`
 */
export function philox(key, counter, out = new Uint32Array(4)) {
  let [k0, k1] = [key[0], key[1]];
  let [c0, c1, c2, c3] = [counter[0], counter[1], counter[2], counter[3]];
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(0xd2511f53, c0);
    const high1 = multiplyHigh(0xcd9e8d57, c2);
    const low0 = Math.imul(0xd2511f53, c0);
    const low1 = Math.imul(0xcd9e8d57, c2);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1 >>> 0;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0 >>> 0;
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
  return out;
}

/** The high 32 bits of a product of two words, by halves of 16 bits. */
function multiplyHigh(a, b) {
  const [aLow, aHigh, bLow, bHigh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  return (aHigh * bHigh + Math.floor(middle / 65536) + (((middle & 0xffff) + aLow * bHigh) / 65536)) >>> 0;
}

/**
 * The key of a seed.
 * @param {number | bigint | string} seed 0 to 2^64 - 1
 * @returns {[number, number]} its low and high 32 bits
 */
export function splitSeed(seed) {
  let whole;
  try {
    whole = typeof seed === "string" && !seed.trim() ? -1n : BigInt(seed);
  } catch {
    whole = -1n;
  }
  if (whole < 0n || whole >= 1n << 64n || (typeof seed === "number" && !Number.isSafeInteger(seed))) {
    throw new RangeError(`The seed is ${seed}; it must be an integer from 0 to 2^64 - 1, a large one as a BigInt.`);
  }
  return [Number(whole & 0xffffffffn), Number(whole >> 32n)];
}

/**
 * Two standard normals of two words, by Box and Muller.
 * @returns {[number, number]}
 */
export function boxMuller(word0, word1) {
  const radius = Math.sqrt(-2 * Math.log((word0 + 0.5) / TWO_32));
  const angle = 2 * Math.PI * ((word1 + 0.5) / TWO_32);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

/**
 * The latents of samples.
 * @param {number | bigint | string} seed 0 to 2^64 - 1
 * @param {ArrayLike<number>} labels of N samples
 * @param {ArrayLike<number>} indices of N samples, 0 to 2^32 - 1
 * @param {number} latentDim Z
 * @param {number} latentStd their standard deviation
 * @param {{ shape: number[], data: Float32Array } | null} [fixed] the bundle's own latents [K, M, Z], where used
 * @returns {Float32Array} N * Z values
 */
export function drawLatents(seed, labels, indices, latentDim, latentStd, fixed = null) {
  const key = splitSeed(seed);
  const latents = new Float32Array(labels.length * latentDim);
  const words = new Uint32Array(4);
  const numFixed = fixed ? fixed.shape[1] : 0;
  for (let row = 0; row < labels.length; row++) {
    const start = row * latentDim;
    const [label, index] = [labels[row], indices[row]];
    if (index < numFixed) {
      const from = (label * numFixed + index) * latentDim;
      latents.set(fixed.data.subarray(from, from + latentDim), start);
      continue;
    }
    for (let z = 0; z < latentDim; z += 4) {
      philox(key, [z / 4, 0, label, index], words);
      const normals = [...boxMuller(words[0], words[1]), ...boxMuller(words[2], words[3])];
      for (let i = 0; i < 4 && z + i < latentDim; i++) latents[start + z + i] = normals[i] * latentStd;
    }
  }
  return latents;
}

/**
 * The shuffle of an epoch.
 * @param {number | bigint | string} seed 0 to 2^64 - 1
 * @param {number | bigint | string} epoch 0 to 2^64 - 1
 * @param {number} n how many positions
 * @returns {Uint32Array} the numbers 0 to n - 1
 */
export function permute(seed, epoch, n) {
  const key = splitSeed(seed);
  const [low, high] = splitSeed(epoch);
  const lows = new Uint32Array(n + 1);
  const highs = new Uint32Array(n + 1);
  const words = new Uint32Array(4);
  for (let position = 0; position < n; position += 2) {
    philox(key, [position / 2, 1, low, high], words);
    [lows[position], highs[position]] = [words[0], words[1]];
    [lows[position + 1], highs[position + 1]] = [words[2], words[3]];
  }
  return Uint32Array.from({ length: n }, (_, position) => position).sort(
    (a, b) => highs[a] - highs[b] || lows[a] - lows[b] || a - b,
  );
}
