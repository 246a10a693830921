/** `dim view` in a browser. */

import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { expect, makeBundle, ROOT, startServer, test } from "./watch.js";

let server, folder;
test.beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "gallery-"));
  server = await startServer(["dim", "view", "mnist", "--no-browser"], { cwd: folder });
});
test.afterAll(() => {
  server?.stop();
  rmSync(folder, { recursive: true });
});

const open = async (page) => {
  await page.goto(server.address);
  await expect(page.locator("body[data-ready]")).toBeAttached();
};
const pixels = (page, selector) =>
  page.locator(selector).evaluateAll((all) => all.map((one) => one.toDataURL()).join(" "));
const answered = (page, name) => page.waitForResponse((answer) => answer.url().includes(name));

test("draws the images of every class, and others for another seed or index", async ({ page }) => {
  await open(page);
  await expect(page.locator("#grid canvas")).toHaveCount(120);
  await expect(page.locator("h1")).toHaveText("mnist");
  await page.getByLabel("Fixed latents").uncheck();
  const first = await pixels(page, "#grid canvas");
  await page.getByLabel("Seed").fill("5");
  await Promise.all([answered(page, "images.png"), page.getByLabel("Seed").press("Tab")]);
  await expect.poll(() => pixels(page, "#grid canvas")).not.toBe(first);
  await page.getByLabel("First index").fill("12");
  await page.getByLabel("First index").press("Tab");
  await page.locator("#class").selectOption("7");
  await expect(page.locator("#grid canvas")).toHaveCount(12);
});

test("the latent std and the fixed latents change the images", async ({ page }) => {
  await open(page);
  const fixed = await pixels(page, "#grid canvas");
  await page.getByLabel("Fixed latents").uncheck();
  await expect.poll(() => pixels(page, "#grid canvas")).not.toBe(fixed);
  const usual = await pixels(page, "#grid canvas");
  await page.locator("#std").fill("1.5");
  await expect.poll(() => pixels(page, "#grid canvas")).not.toBe(usual);
  await page.getByRole("button", { name: "Reset std" }).click();
  await expect.poll(() => pixels(page, "#grid canvas")).toBe(usual);
});

test("the slider goes from one sample to another", async ({ page }) => {
  await open(page);
  await page.getByRole("button", { name: "Class 4, index 3" }).click();
  await expect(page.locator("#one-name")).toHaveText("Class 4");
  await expect(page.locator("#one canvas")).toBeInViewport();
  await expect(page.locator("#one figcaption")).toHaveText("index 3");
  const start = await pixels(page, "#one canvas");
  expect(start).toBe(await pixels(page, '#grid button[aria-pressed="true"] canvas'));
  await page.locator("#place").fill("16");
  await expect(page.locator("#one figcaption")).toHaveText("50 % of the way");
  const middle = await pixels(page, "#one canvas");
  expect(middle).not.toBe(start);
  await page.locator("#place").fill("32");
  await expect(page.locator("#one figcaption")).toHaveText("index 1");
  expect(await pixels(page, "#one canvas")).not.toBe(middle);
});

test("saves what is seen", async ({ page }) => {
  await open(page);
  await page.locator("#class").selectOption("2");
  await page.getByLabel("Images per class").fill("3");
  await page.getByLabel("Images per class").press("Tab");
  await page.locator("#out").fill("twos");
  await page.locator("#out").press("Tab");
  await expect(page.locator("#command")).toHaveText("dim generate --bundle mnist --ipc 3 --class 2 --out twos");
  await page.getByRole("button", { name: "Save 3 images" }).click();
  await expect(page.locator("#saved")).toHaveText(`3 images are in ${join(folder, "twos")}.`);
  expect(readdirSync(join(folder, "twos", "2")).sort()).toEqual(["00000000.png", "00000001.png", "00000002.png"]);
  expect(existsSync(join(folder, "twos", "dataset.json"))).toBe(true);
});

test("shows accuracy and size of the card", async ({ page }) => {
  await open(page);
  await expect(page.locator("#facts")).toContainText(/size\d\.\d\d MB in all/);
  await expect(page.locator("#accuracy")).toContainText("99.2 ± 0.1");
  await expect(page.locator("#accuracy-recipe")).toContainText("1,000 epochs");
});

test("a wrong value is one sentence, gone with the next right one", async ({ page }) => {
  page.mayRefuse();
  await open(page);
  await page.getByLabel("Seed").fill("-1");
  await page.getByLabel("Seed").press("Tab");
  await expect(page.getByRole("alert")).toHaveText("The seed is '-1'; it must be a whole number from 0 to 18446744073709551615.");
  await page.getByLabel("Seed").fill("1");
  await page.getByLabel("Seed").press("Tab");
  await expect(page.getByRole("alert")).toBeHidden();
});

test("an empty field is told wherever the page is scrolled to, and the images stay", async ({ page }) => {
  page.mayRefuse();
  await open(page);
  await page.getByLabel("Images per class").fill("");
  await page.getByLabel("Images per class").press("Tab");
  await expect(page.getByRole("alert")).toHaveText("The number of images per class is ''; it must be a whole number from 1 to 200.");
  await expect(page.locator("#grid canvas")).toHaveCount(120);
  await page.getByLabel("Images per class").fill("12");
  await page.getByLabel("Images per class").press("Tab");
  await expect(page.getByRole("alert")).toBeHidden();
  await page.getByLabel("To index").fill("-1");
  await page.getByLabel("To index").press("Tab");
  await expect(page.getByRole("alert")).toHaveText("The last index is '-1'; it must be a whole number from 0 to 4294967295.");
  await expect(page.getByRole("alert")).toBeInViewport();
});

test("an altered bundle is one sentence", async ({ page }) => {
  page.mayRefuse();
  const bundle = join(folder, "altered.dim");
  cpSync(join(ROOT, "runtime", "shipped", "mnist.dim"), bundle, { recursive: true });
  writeFileSync(join(bundle, "generator.fp32.onnx"), "altered");
  const other = await startServer(["dim", "view", bundle, "--no-browser"], { cwd: folder });
  await page.goto(other.address);
  await expect(page.getByRole("alert")).toContainText("generator.fp32.onnx");
  other.stop();
});

test("names that look like code are text", async ({ page }) => {
  const bad = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
  const other = await startServer(["dim", "view", makeBundle(join(folder, "bad.dim"), bad), "--no-browser"], { cwd: folder });
  await page.goto(other.address);
  await expect(page.locator("body[data-ready]")).toBeAttached();
  await expect(page.locator("#grid .row > span").first()).toHaveText(`${bad}0`);
  await expect(page.locator("main img, main script")).toHaveCount(0);
  expect(await page.title()).toBe("tiny");
  other.stop();
});

test("real images stand beside, and the nearest ones are found", async ({ page }) => {
  const bundle = makeBundle(join(folder, "digits.dim"), "digit ");
  const other = await startServer(["dim", "view", bundle, "--data", bundle, "--replay-ipc", "5", "--no-browser"], { cwd: folder });
  await page.goto(other.address);
  await expect(page.locator("body[data-ready]")).toBeAttached();
  await expect(page.locator("#grid .real canvas")).toHaveCount(10 * 5);
  await expect(page.locator("#nearest figure")).toHaveCount(6);
  await page.getByLabel("Real images").uncheck();
  await expect(page.locator("#grid .real canvas")).toHaveCount(0);
  other.stop();
});

for (const width of [1280, 390]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`fits ${width} pixels in ${colorScheme}`, async ({ page }) => {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 900 });
      await open(page);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      expect(overflow).toBe(0);
    });
  }
}
