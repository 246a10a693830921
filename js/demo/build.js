/** Puts the demo page together in dist/, a folder that any web server can serve as it stands. */

import { cpSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const JS = dirname(dirname(fileURLToPath(import.meta.url)));
export const DIST = join(JS, "dist");
const MAX_BYTES = 15e6;
const ORT = "node_modules/onnxruntime-web/dist";
const SHIPPED = "../runtime/shipped/mnist.dim";
const LOOK = "../runtime/gallery/page";
const FILES = {
  "": ["index.html", "demo.css", "page.js", "worker.js", "classifier.js", "files.js", "test-digits.npz"].map((name) => `demo/${name}`),
  dim: ["index.js", "accepted.js", "bundle.js", "manifest.js", "npz.js", "order.js", "philox.js"].map((name) => `src/${name}`),
  ort: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"].map((name) => `${ORT}/${name}`),
  "mnist.dim": ["manifest.json", "generator.int8.onnx", "latents.npz"].map((name) => `${SHIPPED}/${name}`),
};

rmSync(DIST, { recursive: true, force: true });
for (const [folder, files] of Object.entries({ ...FILES, "": [...FILES[""], `${LOOK}/style.css`, `${LOOK}/icon.svg`] })) {
  mkdirSync(join(DIST, folder), { recursive: true });
  for (const file of files) cpSync(join(JS, file), join(DIST, folder, file.split("/").pop()));
}
const bytes = readdirSync(DIST, { recursive: true }).reduce((sum, name) => sum + statSync(join(DIST, name)).size, 0);
console.log(`The demo page is ${(bytes / 1e6).toFixed(1)} MB, in ${DIST}.`);
if (bytes > MAX_BYTES) {
  console.error(`It may have ${MAX_BYTES / 1e6} MB.`);
  process.exit(1);
}
