/** The demo page in a browser. */

import { readFileSync } from "node:fs";

import { expect, startServer, test } from "./watch.js";

let server;
test.beforeAll(async () => {
  server = await startServer(["node", "js/demo/serve.js"], { env: { PORT: "0" } });
});
test.afterAll(() => server.stop());

test.beforeEach(async ({ page }) => {
  await page.goto(server.address);
  await expect(page.locator("body[data-ready]")).toBeAttached();
});

const pixels = (page, selector) =>
  page.locator(selector).evaluateAll((all) => all.map((one) => one.toDataURL()).join(" "));

test("draws digits, and others for another seed", async ({ page }) => {
  await expect(page.locator("#drawn canvas")).toHaveCount(120);
  const first = await pixels(page, "#drawn canvas");
  await page.locator("#seed").fill("1");
  await page.getByRole("button", { name: "Draw" }).click();
  await expect.poll(() => pixels(page, "#drawn canvas")).not.toBe(first);
  await page.locator("#class").selectOption("7");
  await expect(page.locator("#drawn canvas")).toHaveCount(60);
  await page.locator("#class").selectOption("all");
  await page.locator("#seed").fill("0");
  await page.getByRole("button", { name: "Draw" }).click();
  await expect.poll(() => pixels(page, "#drawn canvas")).toBe(first);
});

test("trains to 90 % on real digits while the page stays free", async ({ page }) => {
  await page.getByRole("button", { name: "Train" }).click();
  await expect(page.locator("#seen")).toHaveText("500");
  await page.locator("#class").selectOption("3"); // the page answers while the worker trains
  await expect(page.locator("#drawn canvas")).toHaveCount(60);
  await expect(page.locator("#seen")).toHaveText("6,000", { timeout: 150_000 });
  const accuracy = parseFloat(await page.locator("#accuracy").textContent());
  console.log(`    accuracy on 500 real digits: ${accuracy} %, after ${await page.locator("#time").textContent()}`);
  expect(accuracy).toBeGreaterThanOrEqual(90);
  const wrong = await page.locator("#digits .wrong").count();
  expect(wrong).toBe(Math.round((500 * (100 - accuracy)) / 100));
});

test("training can be stopped", async ({ page }) => {
  await page.locator("#train-images").fill("50000");
  await page.getByRole("button", { name: "Train" }).click();
  await expect(page.locator("#seen")).toHaveText("500");
  await page.getByRole("button", { name: "Stop" }).click();
  await expect(page.getByRole("button", { name: "Train" })).toBeEnabled();
});

test("a field that cannot be is told where the user looks, and nothing starts", async ({ page }) => {
  const alert = page.getByRole("alert");
  await page.locator("#ipc").fill("");
  await page.getByRole("button", { name: "Download" }).click();
  await expect(alert).toHaveText("The number of images per class is empty; it must be a whole number from 1 to 1000.");
  await expect(alert).toBeInViewport();
  await page.locator("#train-images").fill("1e99");
  await page.getByRole("button", { name: "Train" }).click();
  await expect(alert).toHaveText("The number of generated digits is 1e99; it must be a whole number from 500 to 50000.");
  await expect(page.getByRole("button", { name: "Stop" })).toBeDisabled();
  await page.locator("#first").fill("-1");
  await page.getByRole("button", { name: "Draw" }).click();
  await expect(alert).toHaveText("The first number is -1; it must be a whole number from 0 to 4294967196.");
  await page.locator("#first").fill("0");
  await page.getByRole("button", { name: "Draw" }).click();
  await expect(alert).toBeHidden();
});

test("downloads a set as a zip", async ({ page }) => {
  await page.getByLabel("Images per class").fill("2");
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download" }).click()]);
  expect(download.suggestedFilename()).toBe("mnist-2-per-class.zip");
  const bytes = readFileSync(await download.path());
  const names = [...bytes.toString("latin1").matchAll(/PK\x01\x02[^]{42}([^]{1,24}?\.(?:png|json))/g)].map(([, name]) => name);
  expect(names).toHaveLength(21);
  expect(names.slice(0, 2)).toEqual(["0/00000000.png", "1/00000000.png"]);
  expect(bytes.toString("latin1")).toContain("\x89PNG\r\n\x1a\n");
});

test("an altered bundle and a wrong seed are told in one sentence", async ({ page }) => {
  await page.locator("#seed").fill("-1");
  await page.getByRole("button", { name: "Draw" }).click();
  await expect(page.getByRole("alert")).toHaveText("The seed is -1; it must be a whole number from 0 to 18446744073709551615.");
  await page.context().route("**/generator.int8.onnx", (route) => route.fulfill({ body: "altered" }));
  await page.goto(server.address);
  await expect(page.getByRole("alert")).toHaveText("The file generator.int8.onnx was altered: its SHA-256 is not the one in the manifest.");
});
