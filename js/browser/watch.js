/** What every test in a browser holds: no error on the console, no request to another host; and starting servers. */

import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

import { expect, test as base } from "@playwright/test";

export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

export const test = base.extend({
  page: async ({ page }, use) => {
    const [errors, hosts] = [[], new Set()];
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    page.on("pageerror", (error) => errors.push(error.message));
    page.context().on("request", (request) => hosts.add(new URL(request.url()).hostname));
    await use(page);
    expect(errors).toEqual([]);
    expect([...hosts].filter((host) => host !== "127.0.0.1" && host !== "")).toEqual([]);
  },
});
export { expect };

/** Start a program and wait for the address that it prints on a line. */
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
    child.on("exit", () => reject(new Error(`${command.join(" ")} ended: ${text}`)));
  });
  return { address, stop: () => child.kill() };
}

/** A port that nobody uses. */
export function findPort() {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
