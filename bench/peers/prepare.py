"""Makes what each system runs out of one ONNX file, with its own public tools.

    MODEL.onnx               f32                 ONNX Runtime, OpenVINO, rten, tract
    MODEL.dynamic.onnx       weights int8, activations quantized at run time
                                                 ONNX Runtime, rten
    MODEL.static.onnx        QDQ, ranges from the photographs
                                                 ONNX Runtime
    MODEL.nncf.xml           int8, nncf.quantize with ModelType.TRANSFORMER
                                                 OpenVINO
    MODEL.float.tflite       f32, translated by onnx2tf
    MODEL.dynamic.tflite     weights int8, activations quantized at run time, by
                             Google's ai-edge-quantizer
                                                 LiteRT
    inputSIDE.f32            one photograph, preprocessed: [1, 3, side, side]

The photographs of models/zoo/photos are the calibration set of every system
here, ours too. Six pictures are few for accuracy; a speed does not depend on
the ranges they give.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

import models

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(path, side):
    """The centre of a photograph as a network takes it: `[1, 3, side, side]`."""
    image = Image.open(path).convert("RGB")
    scale = side / 0.875 / min(image.size)
    image = image.resize([round(s * scale) for s in image.size], Image.Resampling.BICUBIC)
    left, top = ((s - side) // 2 for s in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)


def make(path, function):
    """Calls `function(path)` unless the file is there; never leaves half a file."""
    if not path.exists():
        print(f"making {path.name}", flush=True)
        partial = path.with_name(f"partial-{path.name}")
        function(partial)
        for made in path.parent.glob(f"partial-{path.stem}.*"):
            made.rename(made.with_name(made.name.removeprefix("partial-")))


def dynamic(source, target):
    """Linear layers in int8, per output channel; activations u8, quantized at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def static(source, target, pictures):
    """Linear layers in int8, per output channel; activations u8, ranges known."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):
        def __init__(self):
            self.left = iter(pictures)

        def get_next(self):
            picture = next(self.left, None)
            return None if picture is None else {"image": picture}

    cleaned = target.with_suffix(".cleaned.onnx")
    quant_pre_process(source, cleaned, skip_symbolic_shape=True)
    quantize_static(
        cleaned,
        target,
        Pictures(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Attention in float: faster here than in int8.
        extra_options={"MatMulConstBOnly": True},
    )
    cleaned.unlink()


def nncf_int8(source, target, pictures):
    """OpenVINO's own recipe for transformers."""
    import nncf
    import openvino

    data = nncf.Dataset(pictures, lambda picture: {"image": picture})
    quantized = nncf.quantize(
        openvino.convert_model(source), data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(pictures)
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)


def tflite(onnx2tf, source, target):
    """onnx2tf writes .tflite itself; TensorFlow is not involved."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # Its own versions of numpy and onnx rule out our interpreter.
        command = [onnx2tf, "-i", source, "-o", folder, "-n"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (Path(folder) / f"{source.stem}_float32.tflite").rename(target)


def tflite_int8(source, target):
    """Google's recipe for transformers: int8 weights per channel, dynamic activations."""
    from ai_edge_quantizer import quantizer, recipe

    maker = quantizer.Quantizer(str(source), recipe.dynamic_wi8_afp32())
    maker.quantize().export_model(str(target))


def prepare(folder, photos, names, onnx2tf=None):
    """Makes the files of the models `names` that are not in `folder` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        vit = models.MODELS[name]
        pictures = [picture(photo, vit.side) for photo in sorted(photos.glob("*.jpg"))]
        source = folder / f"{name}.onnx"
        make(folder / f"input{vit.side}.f32", lambda path: pictures[0].tofile(path))
        make(source, lambda path: onnx.save(models.build(vit), path))
        make(folder / f"{name}.dynamic.onnx", lambda path: dynamic(source, path))
        make(folder / f"{name}.static.onnx", lambda path: static(source, path, pictures))
        make(folder / f"{name}.nncf.xml", lambda path: nncf_int8(source, path, pictures))
        if onnx2tf:
            float_tflite = folder / f"{name}.float.tflite"
            make(float_tflite, lambda path: tflite(onnx2tf, source, path))
            make(folder / f"{name}.dynamic.tflite", lambda path: tflite_int8(float_tflite, path))
