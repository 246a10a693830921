/** Draws training sets from a dim bundle. */

export { drawAcceptedLatents, findPlace, readAccepted } from "./accepted.js";
export { Bundle, fromUrl, openBundle } from "./bundle.js";
export { BundleError, parseManifest } from "./manifest.js";
export { readNpz } from "./npz.js";
export { orderSet, orderStream, resolveCounts } from "./order.js";
export { boxMuller, drawLatents, permute, philox, splitSeed } from "./philox.js";
