/**
 * tpvit in JavaScript: the functions of `bindings/c/tpvit.h` in a class.
 *
 *     const tpvit = await Tpvit.load(wasmBytes);
 *     const model = tpvit.model(tpvBytes);
 *     const logits = model.run(rgb);        // Uint8Array [height * width * 3] -> Float32Array
 *
 * Bytes are copied into the module's memory and results out of it. Views of
 * that memory are made anew for each use: when it grows, old ones are empty.
 */
export class Tpvit {
  /** From the bytes of `tpvit.wasm`. The module needs nothing from outside. */
  static async load(wasm) {
    const { instance } = await WebAssembly.instantiate(wasm, {});
    return new Tpvit(instance.exports);
  }

  constructor(exports) {
    this.c = exports;
    this.version = this.text(exports.tpvit_version());
  }

  /** From the bytes of a `.tpv` file. Throws an `Error` if they are no model. */
  model(bytes) {
    const pointer = this.#made((slot) =>
      this.lend(bytes, (at) => this.c.tpvit_model_from_memory(at, bytes.length, slot)),
    );
    try {
      const session = this.#made((slot) => this.c.tpvit_session_new(pointer, 1, 0, slot));
      return new Model(this, pointer, session);
    } catch (error) {
      this.c.tpvit_model_free(pointer);
      throw error;
    }
  }

  /** A text that ends with NUL; `null` of a null pointer. */
  text(pointer) {
    if (pointer === 0) return null;
    const memory = new Uint8Array(this.c.memory.buffer);
    return new TextDecoder().decode(memory.subarray(pointer, memory.indexOf(0, pointer)));
  }

  /** Throws if a call failed. */
  check(status) {
    if (status !== 0) throw new Error(this.text(this.c.tpvit_last_error()));
  }

  /** Calls `work` with the address of `len` bytes, which are free afterwards. */
  borrow(len, work) {
    const at = this.c.tpvit_alloc(len);
    if (at === 0) throw new Error(`no memory for ${len} bytes`);
    try {
      return work(at);
    } finally {
      this.c.tpvit_dealloc(at, len);
    }
  }

  /** Calls `work` with the address of a copy of `bytes`. */
  lend(bytes, work) {
    return this.borrow(bytes.length, (at) => {
      new Uint8Array(this.c.memory.buffer).set(bytes, at);
      return work(at);
    });
  }

  /** The pointer that `make` writes to the address it is given. */
  #made(make) {
    return this.borrow(4, (slot) => {
      this.check(make(slot));
      return new DataView(this.c.memory.buffer).getUint32(slot, true);
    });
  }
}

/** A model ready to run; `free` it when it is not needed any more. */
export class Model {
  constructor(tpvit, model, session) {
    const { c } = tpvit;
    this.tpvit = tpvit;
    this.pointers = { model, session };
    this.height = c.tpvit_model_height(model);
    this.width = c.tpvit_model_width(model);
    this.classes = c.tpvit_model_classes(model);
    this.outputShape = [c.tpvit_model_output_rows(model), c.tpvit_model_output_cols(model)];
    this.shorterSide = c.tpvit_model_shorter_side(model);
    this.isa = tpvit.text(c.tpvit_session_isa(session));
    this.memoryBytes = c.tpvit_session_bytes(session);
  }

  /** What a class is called; "class 3" if the file does not say. */
  label(number) {
    const label = this.tpvit.text(this.tpvit.c.tpvit_model_label(this.pointers.model, number));
    return label ?? `class ${number}`;
  }

  /** The result of one picture: RGB, `height * width * 3` bytes. */
  run(rgb) {
    const { tpvit } = this;
    const len = this.outputShape[0] * this.outputShape[1];
    return tpvit.lend(rgb, (pixels) =>
      tpvit.borrow(len * 4, (output) => {
        const { session } = this.pointers;
        tpvit.check(tpvit.c.tpvit_session_run(session, pixels, rgb.length, output, len));
        return new Float32Array(tpvit.c.memory.buffer, output, len).slice();
      }),
    );
  }

  /** The likeliest classes of one picture: `[{ label, probability }]`. */
  classify(rgb, top = 5) {
    if (this.classes === 0) throw new Error("this model gives features, which name no class");
    const { tpvit } = this;
    const logits = new Uint8Array(this.run(rgb).buffer);
    const probabilities = tpvit.lend(logits, (at) => {
      tpvit.check(tpvit.c.tpvit_softmax(at, this.classes));
      return new Float32Array(tpvit.c.memory.buffer, at, this.classes).slice();
    });
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
    const named = (i) => ({ label: this.label(i), probability: probabilities[i] });
    return order.slice(0, top).map(named);
  }

  free() {
    this.tpvit.c.tpvit_session_free(this.pointers.session);
    this.tpvit.c.tpvit_model_free(this.pointers.model);
    this.pointers = { model: 0, session: 0 };
  }
}
