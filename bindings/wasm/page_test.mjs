// Uses the page as a person would, in headless Chromium by WebDriver:
//
//     node page_test.mjs PAGE.html FOLDER      with the files of golden_run.rs
//
// It chooses the model, drops a picture and reads the answers; then it gives
// the page what is no picture and no model.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { Tpvit } from "./tpvit.mjs";

const [page, folder] = process.argv.slice(2);
const ELEMENT = "element-6066-11e4-a52e-4f735466cecf"; // the WebDriver standard's name

const driver = spawn("chromedriver", ["--port=0"], { stdio: ["ignore", "pipe", "inherit"] });
const port = await new Promise((found) => {
  createInterface(driver.stdout).on("line", (line) => {
    const started = line.match(/started successfully on port (\d+)/);
    if (started) found(started[1]);
  });
});

async function call(method, path, body) {
  const response = await fetch(`http://localhost:${port}${path}`, {
    method,
    body: body && JSON.stringify(body),
  });
  const { value } = await response.json();
  if (!response.ok) throw new Error(`${path}: ${value.message}`);
  return value;
}

const args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
const capabilities = { alwaysMatch: { "goog:chromeOptions": { args } } };
let session;
try {
  session = `/session/${(await call("POST", "/session", { capabilities })).sessionId}`;
  const run = (script, ...args) => call("POST", `${session}/execute/sync`, { script, args });
  const text = (id) => run(`return document.getElementById("${id}").innerText`);
  const choose = async (id, path) => {
    const found = await call("POST", `${session}/element`, { using: "css selector", value: `#${id}` });
    await call("POST", `${session}/element/${found[ELEMENT]}/value`, { text: path });
  };
  const until = async (what, fact) => {
    for (let i = 0; i < 200; i++) {
      if (await fact()) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`${what}: not after 10 s; error: ${await text("error")}`);
  };

  await call("POST", `${session}/url`, { url: pathToFileURL(resolve(page)).href });
  await until("the page is ready", () => run("return document.body.dataset.ready"));

  await choose("model", resolve(join(folder, "model.tpv")));
  await until("the model is loaded", async () => (await text("status")).includes("32 x 32 pixels, 11 classes"));

  // A picture of one colour stays that through any resize, so the answers are
  // those of the same pixels in node.
  const drop = `
    const [colour, done] = arguments;
    const canvas = new OffscreenCanvas(90, 70);
    const context = canvas.getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 90, 70);
    canvas.convertToBlob({ type: "image/png" }).then((blob) => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([blob], "drawn.png", { type: "image/png" }));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
      done();
    });`;
  await call("POST", `${session}/execute/async`, { script: drop, args: ["rgb(200, 30, 90)"] });
  await until("there are answers", async () => (await text("answers")).includes("%"));

  const script = `return /atob\\("([^"]+)"\\)/.exec(document.scripts[0].text)[1]`;
  const tpvit = await Tpvit.load(Buffer.from(await run(script), "base64"));
  const model = tpvit.model(new Uint8Array(readFileSync(join(folder, "model.tpv"))));
  const rgb = new Uint8Array(32 * 32 * 3).map((_, i) => [200, 30, 90][i % 3]);
  const expected = model
    .classify(rgb)
    .map(({ label, probability }) => `${label}\t${(probability * 100).toFixed(1)} %`);
  assert.deepEqual((await text("answers")).split("\n"), expected);
  assert.equal(await text("error"), "");
  const shot = process.env.TPVIT_SCREENSHOT;
  if (shot) writeFileSync(shot, Buffer.from(await call("GET", `${session}/screenshot`), "base64"));

  await choose("picture", resolve(join(folder, "logits.f32")));
  await until("what is no picture is named", async () =>
    (await text("error")).includes("logits.f32 is no picture"),
  );
  await choose("model", resolve(join(folder, "pixels.rgb")));
  await until("what is no model is refused", async () =>
    (await text("error")).includes("cannot use the model in memory"),
  );
  console.log(`page: answers as in node: ${expected[0].replace("\t", " ")}`);
} finally {
  if (session) await call("DELETE", session).catch(() => {});
  driver.kill();
}
