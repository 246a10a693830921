/**
 * `manifest.json`: parsed, its own hash and content id checked, files checked against it. docs/formats.md describes it.
 */

const FORMAT_VERSIONS = [1];
const SAMPLING_VERSIONS = [1, 2];
const MAX_MANIFEST_BYTES = 16 * 2 ** 20;
const MAX_FILE_BYTES = 2 ** 30;

/** A bundle that is missing, altered, malformed or too new; the message is one sentence. */
export class BundleError extends Error {
  name = "BundleError";
}

/**
 * Parse and check a manifest.
 * @param {Uint8Array} bytes of `manifest.json`
 * @returns {Promise<object>} what it says
 */
export async function parseManifest(bytes) {
  if (bytes.length > MAX_MANIFEST_BYTES) throw new BundleError(`The manifest has ${bytes.length} bytes, which is too many.`);
  let manifest, text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    manifest = JSON.parse(text);
  } catch {
    throw new BundleError("The manifest is not UTF-8 JSON.");
  }
  refuseOther(manifest?.format_version, FORMAT_VERSIONS, "format version");
  refuseOther(manifest.sampling?.sampling_version, SAMPLING_VERSIONS, "sampling version");
  checkFields(manifest);
  const { whole, fields } = canonicalise(text);
  if ((await sha256(whole)) !== manifest.manifest_sha256) {
    throw new BundleError("The manifest was altered: its contents do not match its manifest_sha256.");
  }
  const { "accepted.bin": accepted, "latents.npz": latents, "generator.fp32.onnx": generator } = manifest.files;
  const identity = [
    ...(accepted ? [`"accepted":"${accepted.sha256}"`] : []),
    `"classes":${fields.classes}`,
    `"generator":"${generator.sha256}"`,
    `"latents":${latents ? `"${latents.sha256}"` : "null"}`,
    `"sampling":${fields.sampling}`,
  ];
  if ((await sha256(`{${identity.join(",")}}`)) !== manifest.content_id) {
    throw new BundleError("The manifest's content_id does not match its classes, sampling block and files.");
  }
  return manifest;
}

/**
 * Check a file of a bundle against the manifest.
 * @param {object} manifest
 * @param {string} name for example "generator.fp32.onnx"
 * @param {Uint8Array} bytes
 */
export async function checkFile(manifest, name, bytes) {
  const record = manifest.files[name];
  if (!record) throw new BundleError(`The bundle has no file ${name}.`);
  if (bytes.length !== record.size_bytes || (await sha256(bytes)) !== record.sha256) {
    throw new BundleError(`The file ${name} was altered: its SHA-256 is not the one in the manifest.`);
  }
}

/**
 * SHA-256 as hexadecimal digits.
 * @param {Uint8Array | string} data
 */
export async function sha256(data) {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
  const digest = await globalThis.crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function refuseOther(found, known, what) {
  if (known.includes(found)) return;
  const hint = Number.isInteger(found) && found > Math.max(...known) ? "use a newer release" : "it is no bundle that can be read";
  throw new BundleError(`The manifest has ${what} ${found}, and ${known.join(" and ")} can be read here: ${hint}.`);
}

/** Check what this module uses of a manifest. */
function checkFields({ name, classes, image, sampling, source, files }) {
  const whole = (value, low, high) => Number.isInteger(value) && value >= low && value <= high;
  const record = (file) => /^[0-9a-f]{64}$/.test(file?.sha256) && whole(file.size_bytes, 0, MAX_FILE_BYTES);
  const rules = {
    name: typeof name === "string",
    classes: Array.isArray(classes) && classes.length >= 1 && classes.every((text) => typeof text === "string"),
    "image.height": whole(image?.height, 1, 4096),
    "image.width": whole(image?.width, 1, 4096),
    "image.channels": image?.channels === 1 || image?.channels === 3,
    "sampling.latent_dim": whole(sampling?.latent_dim, 1, 65536),
    "sampling.latent_std": sampling?.latent_std >= 1e-6 && sampling.latent_std <= 1e3,
    "source.class_counts": source?.class_counts?.length === classes?.length,
    sampling: (sampling?.sampling_version === 2) === Boolean(files?.["accepted.bin"]),
    files: record(files?.["generator.fp32.onnx"]) && Object.values(files).every(record),
  };
  const wrong = Object.keys(rules).find((field) => !rules[field]);
  if (wrong) throw new BundleError(`The manifest's field ${wrong} is missing or out of range.`);
}

/**
 * Write JSON in its canonical form: sorted keys, no spaces, numbers as they stand. JavaScript's own numbers would lose
 * the difference between 1 and 1.0, which the hash sees.
 * @returns {{ whole: string, fields: Record<string, string> }} without `manifest_sha256`, and every top-level value
 */
function canonicalise(text) {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|[{}[\]:,]|[^\s{}[\]:,"]+/g);
  const fields = {};
  let at = 0;
  const read = (depth) => {
    const token = tokens[at++];
    if (token === "[") return `[${readItems("]", () => read(depth + 1)).join(",")}]`;
    if (token !== "{") return token.startsWith('"') ? JSON.stringify(JSON.parse(token)) : token;
    const pairs = readItems("}", () => {
      const key = JSON.parse(tokens[at++]);
      at++; // the colon
      return [key, read(depth + 1)];
    });
    if (new Set(pairs.map(([key]) => key)).size !== pairs.length) {
      throw new BundleError("The manifest holds a key twice in one object.");
    }
    if (depth === 0) for (const [key, value] of pairs) fields[key] = value;
    const kept = pairs.filter(([key]) => depth > 0 || key !== "manifest_sha256");
    kept.sort(([a], [b]) => compareCodePoints(a, b));
    return `{${kept.map(([key, value]) => `${JSON.stringify(key)}:${value}`).join(",")}}`;
  };
  const readItems = (end, readItem) => {
    const items = [];
    if (tokens[at] === end) at++;
    else do items.push(readItem());
    while (tokens[at++] === ",");
    return items;
  };
  return { whole: read(0), fields };
}

function compareCodePoints(a, b) {
  const [left, right] = [Array.from(a), Array.from(b)];
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    if (left[i] !== right[i]) return left[i].codePointAt(0) - right[i].codePointAt(0);
  }
  return left.length - right.length;
}
