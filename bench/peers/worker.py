"""Times one model on one peer, a round at a time.

    worker.py ort|openvino-f32|openvino|litert MODEL INPUT.f32 THREADS

    <- {"version": ..., "logits": [...]}
    -> run WARMUP RUNS
    <- [ms, ms, ...]

The process stays alive between rounds, so loading, optimising and packing are
never timed. Each peer gets its fastest documented settings for one picture at a
time on `THREADS` threads, and its input and output arrays are made beforehand.
"""

import json
import sys
import time

import numpy as np


def ort(model, image, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image}
    return onnxruntime.__version__, lambda: session.run(None, feed)[0]


def openvino(model, image, threads, **more):
    import openvino

    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads, **more}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(image))

    def infer():
        request.infer()
        return request.get_output_tensor().data

    return openvino.__version__.split("-")[0], infer


def openvino_f32(model, image, threads):
    # Unless told so, it runs f32 layers in bf16 where the CPU has that.
    return openvino(model, image, threads, INFERENCE_PRECISION_HINT="f32")


def litert(model, image, threads):
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    # XNNPACK is what it uses unless told otherwise.
    interpreter = Interpreter(model_path=model, num_threads=threads)
    interpreter.allocate_tensors()
    [entry], [out] = interpreter.get_input_details(), interpreter.get_output_details()
    if tuple(entry["shape"]) != image.shape:  # channels last
        image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    interpreter.set_tensor(entry["index"], image)

    def infer():
        interpreter.invoke()
        return interpreter.get_tensor(out["index"])

    return version("ai-edge-litert"), infer


def main():
    runtime, model, path, threads = sys.argv[1:]
    image = np.fromfile(path, np.float32)
    side = round((image.size / 3) ** 0.5)
    load = {"ort": ort, "openvino-f32": openvino_f32, "openvino": openvino, "litert": litert}[runtime]
    version, infer = load(model, image.reshape(1, 3, side, side), int(threads))
    logits = np.ravel(infer()).tolist()
    print(json.dumps({"version": version, "logits": logits}), flush=True)
    for line in sys.stdin:
        _, warmup, runs = line.split()
        for _ in range(int(warmup)):
            infer()
        times = []
        for _ in range(int(runs)):
            start = time.perf_counter()
            infer()
            times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
