/** PNG and ZIP, written without a library: the browser packs, the rest are a few numbers around it. */

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/**
 * Encode an image as PNG.
 * @param {Uint8Array} pixels height * width * channels bytes
 * @param {{ height: number, width: number, channels: number }} shape channels 1 or 3
 * @returns {Promise<Uint8Array>}
 */
export async function encodePng(pixels, { height, width, channels }) {
  const row = width * channels;
  const lines = new Uint8Array(height * (row + 1)); // a 0 before each line: no filter
  for (let y = 0; y < height; y++) lines.set(pixels.subarray(y * row, (y + 1) * row), y * (row + 1) + 1);
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(packed).arrayBuffer());
  const head = new Uint8Array(13);
  new DataView(head.buffer).setUint32(0, width);
  new DataView(head.buffer).setUint32(4, height);
  head.set([8, channels === 1 ? 0 : 2], 8);
  return join([
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
    pngChunk("IHDR", head),
    pngChunk("IDAT", data),
    pngChunk("IEND", new Uint8Array(0)),
  ]);
}

function pngChunk(name, data) {
  const chunk = new Uint8Array(data.length + 12);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  chunk.set(new TextEncoder().encode(name), 4);
  chunk.set(data, 8);
  view.setUint32(data.length + 8, crc32(chunk.subarray(4, data.length + 8)));
  return chunk;
}

/**
 * Write a ZIP archive, its members stored as they are.
 * @param {{ name: string, content: Uint8Array }[]} members
 * @returns {Uint8Array}
 */
export function writeZip(members) {
  const [files, directory] = [[], []];
  let offset = 0;
  for (const { name, content } of members) {
    const path = new TextEncoder().encode(name);
    const fields = [20, 0x0800, 0, 0, 0x21]; // version, names in UTF-8, stored, midnight of 1 January 1980
    const sizes = [crc32(content), content.length, content.length];
    const local = record(0x04034b50, fields, sizes, [path.length, 0]);
    files.push(local, path, content);
    directory.push(record(0x02014b50, [20, ...fields], sizes, [path.length, 0, 0, 0, 0], [0, offset]), path);
    offset += local.length + path.length + content.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record(0x06054b50, [0, 0, members.length, members.length], [size, offset], [0]);
  return join([...files, ...directory, end]);
}

/** Numbers as ZIP writes them, little-endian: a signature, then lists of 16 bits and of 32 bits in turn. */
function record(signature, ...lists) {
  const bytes = [[signature, 4], ...lists.flatMap((list, i) => list.map((number) => [number, i % 2 ? 4 : 2]))];
  return Uint8Array.from(bytes.flatMap(([number, size]) => Array.from({ length: size }, (_, i) => (number >>> (8 * i)) & 0xff)));
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
