// The module gives the bits of the Rust crate, and says what is wrong otherwise.
//
//     TPVIT_WASM=tpvit.wasm TPVIT_GOLDEN=FOLDER node --test test.mjs
//
// FOLDER has the files of bindings/common/examples/golden_run.rs.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Tpvit } from "./tpvit.mjs";

const golden = (name) => new Uint8Array(readFileSync(join(process.env.TPVIT_GOLDEN, name)));
const bytes = golden("model.tpv");
const pixels = golden("pixels.rgb");
const logits = golden("logits.f32");
const tpvit = await Tpvit.load(readFileSync(process.env.TPVIT_WASM));

const bits = (floats) => Buffer.from(floats.buffer);

test("gives the bits of the Rust crate", () => {
  const model = tpvit.model(bytes);
  for (let i = 0; i < 3; i++) assert.deepEqual(bits(model.run(pixels)), Buffer.from(logits));
  model.free();
});

test("says what it is", () => {
  const model = tpvit.model(bytes);
  assert.match(tpvit.version, /^\d+\.\d+\.\d+$/);
  assert.deepEqual([model.height, model.width, model.classes], [32, 32, 11]);
  assert.deepEqual(model.outputShape, [1, 11]);
  assert.equal(model.shorterSide, 36);
  assert.equal(model.isa, "portable");
  assert.equal(model.label(10), "class 10");
  assert.equal(model.label(11), "class 11");
  model.free();
});

test("classifies", () => {
  const model = tpvit.model(bytes);
  const expected = [...new Float32Array(logits.slice().buffer)];
  const exp = expected.map(Math.exp);
  const sum = exp.reduce((a, b) => a + b);
  const answers = model.classify(pixels, 11);
  const order = [...expected.keys()].sort((a, b) => expected[b] - expected[a]);
  assert.deepEqual(answers.map((a) => a.label), order.map((i) => `class ${i}`));
  for (const [rank, i] of order.entries()) {
    // 2e-7 of each exp and of their sum, which is at least 1.
    assert.ok(Math.abs(answers[rank].probability - exp[i] / sum) < 4e-6);
  }
  assert.equal(model.classify(pixels).length, 5);
  model.free();
});

test("refuses what is no model or no picture", () => {
  assert.throws(() => tpvit.model(new Uint8Array()), /^Error: cannot use the model in memory: /);
  assert.throws(() => tpvit.model(bytes.subarray(0, bytes.length - 1)), /cannot use/);
  const wrong = bytes.slice();
  wrong[wrong.length - 1] ^= 1;
  assert.throws(() => tpvit.model(wrong), /cannot use/);
  const model = tpvit.model(bytes);
  assert.throws(() => model.run(pixels.subarray(1)), /3071 bytes/);
  model.free();
  assert.throws(() => model.run(pixels), /session is NULL/);
});

test("a thousand models leave the memory as it was", () => {
  const round = () => {
    const model = tpvit.model(bytes);
    model.run(pixels);
    model.free();
  };
  for (let i = 0; i < 10; i++) round();
  const before = tpvit.c.memory.buffer.byteLength;
  for (let i = 0; i < 1000; i++) round();
  assert.equal(tpvit.c.memory.buffer.byteLength, before);
});
