/**
 * Reads NPZ: a ZIP archive, stored or deflated, of NumPy arrays in format 1.0. No pickle.
 */

import { BundleError } from "./manifest.js";

const TYPES = { "<f4": Float32Array, "|u1": Uint8Array, "<i8": BigInt64Array };
const MAX_BYTES = 2 ** 28;

/**
 * @param {Uint8Array} bytes of the archive
 * @returns {Promise<Record<string, { shape: number[], data: Float32Array | Uint8Array | BigInt64Array }>>} by name
 */
export async function readNpz(bytes) {
  try {
    const arrays = {};
    for (const { name, content } of await readZip(bytes)) arrays[name.replace(/\.npy$/, "")] = parseNpy(content);
    return arrays;
  } catch (error) {
    throw new BundleError(`The archive of NumPy arrays cannot be read: ${error.message}.`);
  }
}

async function readZip(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = bytes.length - 22;
  if (end < 0 || view.getUint32(end, true) !== 0x06054b50) throw new Error("it has no directory at its end");
  const members = [];
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const method = view.getUint16(at + 10, true);
    const [packed, size] = [view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
    const nameLength = view.getUint16(at + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    if (size > MAX_BYTES) throw new Error(`${name} is too large`);
    const data = bytes.subarray(start, start + packed);
    const content = method === 0 ? data.slice() : method === 8 ? await inflate(data, size) : null;
    if (content === null || content.length !== size) throw new Error(`${name} is packed in a way that is not known`);
    members.push({ name, content });
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return members;
}

/** Unpack, and stop as soon as more comes than the directory said. */
async function inflate(data, size) {
  const reader = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const content = new Uint8Array(size);
  let filled = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (filled + part.value.length > size) throw new Error("a member is longer than its directory says");
    content.set(part.value, filled);
    filled += part.value.length;
  }
  return content.subarray(0, filled);
}

function parseNpy(content) {
  const head = String.fromCharCode(...content.subarray(0, 256)); // "latin1" is another encoding in browsers
  const match = /^\x93NUMPY\x01\x00..\{'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n/s.exec(head);
  const Type = match && TYPES[match[1]];
  if (!Type) throw new Error("an array has no header of format 1.0, or a type that is not read here");
  const shape = match[2].split(",").map((text) => text.trim()).filter(Boolean).map(Number);
  const length = shape.reduce((product, side) => product * side, 1);
  const start = 10 + content[8] + 256 * content[9];
  if (content.length - start !== length * Type.BYTES_PER_ELEMENT) throw new Error("an array is cut off");
  return { shape, data: new Type(content.slice(start).buffer) };
}
