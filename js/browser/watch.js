/** What every test in a browser holds: no error on the console, no request to another host; and starting servers. */

import { execFileSync, spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { expect, test as base } from "@playwright/test";

export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const REFUSED = /^Failed to load resource: the server responded with a status of 400/;

export const test = base.extend({
  page: async ({ page }, use) => {
    const [errors, hosts] = [[], new Set()];
    let refusals = false;
    /** In this test the server answers some request with a sentence, which Chromium puts on the console. */
    page.mayRefuse = () => (refusals = true);
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    page.on("pageerror", (error) => errors.push(error.message));
    page.context().on("request", (request) => hosts.add(new URL(request.url()).hostname));
    await use(page);
    expect(errors.filter((text) => !(refusals && REFUSED.test(text)))).toEqual([]);
    expect([...hosts].filter((host) => host !== "127.0.0.1" && host !== "")).toEqual([]);
  },
});
export { expect };

/** Start a program and wait for the address that it prints. */
export async function startServer(command, options = {}) {
  const child = spawn(command[0], command.slice(1), { cwd: ROOT, ...options, env: { ...process.env, ...options.env } });
  let text = "";
  const address = await new Promise((resolve, reject) => {
    const look = (part) => {
      text += part;
      const found = /http:\/\/127\.0\.0\.1:\d+\/\S*/.exec(text);
      if (found) resolve(found[0]);
    };
    child.stdout.on("data", look);
    child.stderr.on("data", look);
    child.on("error", reject);
    child.on("exit", () => reject(new Error(`${command.join(" ")} ended: ${text}`)));
  });
  return { address, stop: () => child.kill() };
}

/** Build the tiny bundle of the Python tests, with ten classes whose names begin alike. */
export function makeBundle(path, names) {
  const code = "import sys, tiny_bundle as t; t.build_tiny_bundle(sys.argv[1], classes=[f'{sys.argv[2]}{k}' for k in range(10)])";
  const env = { ...process.env, PYTHONPATH: join(ROOT, "tests", "support") };
  execFileSync("python", ["-c", code, path, names], { cwd: ROOT, env });
  return path;
}
