/** Serves dist/ on 127.0.0.1 and opens it in a browser:  node demo/serve.js  on $PORT, else 8080. */

import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const DIST = join(dirname(dirname(fileURLToPath(import.meta.url))), "dist");
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css",
  ".svg": "image/svg+xml",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};
const port = Number(process.env.PORT ?? 8080);

const server = createServer(async ({ url }, answer) => {
  const path = normalize(decodeURI(new URL(url, "http://host").pathname));
  try {
    const body = await readFile(join(DIST, path.endsWith("/") ? `${path}index.html` : path));
    answer.writeHead(200, { "content-type": TYPES[extname(path)] ?? (path.endsWith("/") ? TYPES[".html"] : "application/octet-stream") });
    answer.end(body);
  } catch {
    answer.writeHead(404).end();
  }
});
server.on("error", ({ code }) => {
  console.error(code === "EADDRINUSE" ? `Port ${port} is in use: choose another, as in  make web PORT=8081` : `No server: ${code}.`);
  process.exit(1);
});
server.listen(port, "127.0.0.1", () => {
  const address = `http://127.0.0.1:${server.address().port}/`;
  console.log(`${address}  (Ctrl-C ends it)`);
  if (process.env.DISPLAY || process.env.WAYLAND_DISPLAY) {
    spawn("xdg-open", [address], { stdio: "ignore", detached: true }).on("error", () => {});
  }
});
