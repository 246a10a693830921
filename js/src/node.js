/** Reads a bundle's files from a folder, in Node. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { BundleError } from "./manifest.js";

/**
 * @param {string} folder
 * @returns {(name: string) => Promise<Uint8Array>}
 */
export function fromFolder(folder) {
  return async (name) => {
    try {
      return new Uint8Array(await readFile(join(folder, name)));
    } catch (error) {
      throw new BundleError(`${join(folder, name)} cannot be read (${error.code}).`);
    }
  };
}
