/**
 * An opened bundle: images by class and index, whole sets, and a stream of batches for a training loop.
 */

import { drawAcceptedLatents, readAccepted } from "./accepted.js";
import { BundleError, checkFile, parseManifest } from "./manifest.js";
import { readNpz } from "./npz.js";
import { orderSet, orderStream, resolveCounts } from "./order.js";
import { drawLatents } from "./philox.js";

const MAX_ROWS_PER_RUN = 64;

/**
 * Open a bundle: its manifest and the files that are used are checked against their hashes.
 * @param {(name: string) => Promise<Uint8Array>} read returns a file of the bundle: `fromUrl`, or `fromFolder` in Node
 * @param {object} options
 * @param {object} options.ort the module `onnxruntime-web` or `onnxruntime-node`
 * @param {"fp32" | "fp16" | "int8"} [options.precision]
 * @param {boolean} [options.fixedLatents] use the latents that the bundle optimised for small sets, where it has some
 * @param {object} [options.session] options of ONNX Runtime's session
 * @returns {Promise<Bundle>}
 */
export async function openBundle(read, { ort, precision = "fp32", fixedLatents = true, session = {} }) {
  const manifest = await parseManifest(await read("manifest.json"));
  const readChecked = async (name) => {
    const bytes = await read(name);
    await checkFile(manifest, name, bytes);
    return bytes;
  };
  const name = `generator.${precision}.onnx`;
  if (!manifest.files[name]) throw new BundleError(`The bundle has no generator in the precision ${precision}.`);
  let fixed = null;
  if (fixedLatents && manifest.files["latents.npz"]) {
    fixed = (await readNpz(await readChecked("latents.npz"))).latents;
    const [classes, , latentDim] = fixed?.shape ?? [];
    if (classes !== manifest.classes.length || latentDim !== manifest.sampling.latent_dim) {
      throw new BundleError("latents.npz does not fit the bundle's classes and latents.");
    }
  }
  const accepted = manifest.files["accepted.bin"] ? readAccepted(await readChecked("accepted.bin")) : null;
  if (accepted && accepted.numbers.length !== manifest.classes.length) {
    throw new BundleError("accepted.bin does not fit the bundle's classes.");
  }
  const model = await readChecked(name);
  try {
    return new Bundle(manifest, { fixed, accepted }, ort, await ort.InferenceSession.create(model, session));
  } catch (error) {
    throw new BundleError(`ONNX Runtime cannot open ${name}: ${error.message}`);
  }
}

/**
 * Reads a bundle's files from a folder behind an address.
 * @param {string | URL} address of the folder
 * @returns {(name: string) => Promise<Uint8Array>}
 */
export function fromUrl(address) {
  const folder = new URL(`${address}`.replace(/\/*$/, "/"), globalThis.location?.href);
  return async (name) => {
    const answer = await fetch(new URL(name, folder)).catch(() => null);
    if (!answer?.ok) throw new BundleError(`${name} of the bundle cannot be fetched (${answer?.status ?? "no answer"}).`);
    return new Uint8Array(await answer.arrayBuffer());
  };
}

/** Made by `openBundle`. Calls may overlap; runs of the graph follow each other. */
export class Bundle {
  #fixed;
  #accepted;
  #ort;
  #session;
  #last = Promise.resolve();

  constructor(manifest, { fixed, accepted }, ort, session) {
    this.manifest = manifest;
    this.classes = manifest.classes;
    ({ height: this.height, width: this.width, channels: this.channels } = manifest.image);
    this.#fixed = fixed;
    this.#accepted = accepted;
    this.#ort = ort;
    this.#session = session;
  }

  /** Images of each class with latents of their own; 0 where none are used. */
  get numFixedLatents() {
    return this.#fixed?.shape[1] ?? 0;
  }

  /**
   * Draw images.
   * @param {ArrayLike<number>} labels of N samples
   * @param {ArrayLike<number>} indices of N samples, 0 to 2^32 - 1
   * @param {{ seed?: number | bigint | string, use?: "fixed" | "stream" }} [options]
   * @returns {Promise<Uint8Array>} N * H * W * C bytes
   */
  async sample(labels, indices, { seed = 0, use = "fixed" } = {}) {
    this.#check(labels, indices);
    const pixels = this.height * this.width * this.channels;
    const images = new Uint8Array(labels.length * pixels);
    for (let start = 0; start < labels.length; start += MAX_ROWS_PER_RUN) {
      const part = Array.prototype.slice.call(labels, start, start + MAX_ROWS_PER_RUN);
      const numbers = Array.prototype.slice.call(indices, start, start + MAX_ROWS_PER_RUN);
      images.set(await this.render(this.latents(part, numbers, { seed, use }), part), start * pixels);
    }
    return images;
  }

  /**
   * The latents of samples; arguments as `sample`.
   * @returns {Float32Array} N * Z values
   */
  latents(labels, indices, { seed = 0, use = "fixed" } = {}) {
    this.#check(labels, indices);
    const { latent_dim, latent_std } = this.manifest.sampling;
    const rest = [seed, labels, indices, latent_dim, latent_std, use === "fixed" ? this.#fixed : null];
    return this.#accepted ? drawAcceptedLatents(this.#accepted, ...rest) : drawLatents(...rest);
  }

  /**
   * Run the graph on latents.
   * @param {Float32Array} latents N * Z values
   * @param {ArrayLike<number>} labels of N samples
   * @returns {Promise<Uint8Array>} N * H * W * C bytes
   */
  async render(latents, labels) {
    const run = async () => {
      const { Tensor } = this.#ort;
      const rows = labels.length;
      const { images } = await this.#session.run({
        latents: new Tensor("float32", latents, [rows, latents.length / rows]),
        labels: new Tensor("int64", BigInt64Array.from(labels, BigInt), [rows]),
      });
      return images.data;
    };
    this.#last = this.#last.then(run, run);
    return this.#last;
  }

  /**
   * Draw a whole set, in the order and with the pixels of `dim generate`.
   * @param {object} size as `resolveCounts`; and `seed`, `start`
   * @returns {Promise<{ images: Uint8Array, labels: Int32Array, indices: Float64Array }>}
   */
  async arrays({ seed = 0, start = 0, ...size }) {
    const { labels, indices } = orderSet(resolveCounts(this.manifest.source.class_counts, size), start);
    return { images: await this.sample(labels, indices, { seed }), labels, indices };
  }

  /**
   * Draw fresh images epoch after epoch: `for await (const { images, labels } of bundle.stream({ ipc: 10 }))`.
   * @param {object} plan as `orderStream`; `labels` are all classes where left out
   * @yields {{ images: Uint8Array, labels: Int32Array, indices: Float64Array }}
   */
  async *stream({ seed = 0, labels = this.classes.map((_, label) => label), ...plan }) {
    for (const batch of orderStream({ ...plan, seed, labels })) {
      yield { images: await this.sample(batch.labels, batch.indices, { seed, use: "stream" }), ...batch };
    }
  }

  /** Give back the session. */
  async close() {
    await this.#session.release();
  }

  /** A graph does not refuse a label that is no class. */
  #check(labels, indices) {
    if (labels.length !== indices.length) {
      throw new RangeError(`There are ${labels.length} labels and ${indices.length} indices; give one per label.`);
    }
    for (let row = 0; row < labels.length; row++) {
      const [label, index] = [labels[row], indices[row]];
      if (!Number.isInteger(label) || label < 0 || label >= this.classes.length) {
        throw new RangeError(`The bundle has no class ${label}; labels go from 0 to ${this.classes.length - 1}.`);
      }
      if (!Number.isInteger(index) || index < 0 || index >= 2 ** 32) {
        throw new RangeError(`The index is ${index}; it must be an integer from 0 to 2^32 - 1.`);
      }
    }
  }
}
