#!/usr/bin/env python3
"""Makes small random checkpoints with the ONNX export of each.

    pip install torch timm transformers onnx safetensors
    python tools/make_checkpoints.py quantizer/tests/fixtures/checkpoints

Each folder gets `model.safetensors`, `config.json` (Hugging Face's own, or the
keys of timm's that tpvit reads) and `EXPORTER.onnx` of each of EXPORTERS that can
write it. `quantizer/tests/checkpoints.rs` holds them all to the same Program and the
same weights, bit for bit.
"""

import json
import pathlib
import sys
import warnings

import onnx
import timm
import torch
import transformers as hf
from safetensors.torch import save_file

warnings.simplefilter("ignore")
OUT = pathlib.Path(sys.argv[1])
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)


def randomise(model):
    """Gains around 1, everything else around 0; the same for the same model."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith(("weight", "gamma", "lambda1"))
        with torch.no_grad():
            parameter.copy_(1 + 0.2 * noise if gain else 0.2 * noise)
    return model.eval()


class Result(torch.nn.Module):
    """What a Hugging Face model returns first, and timm's as it is."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        result = self.model(image)
        for name in ("logits", "last_hidden_state"):
            if hasattr(result, name):
                return getattr(result, name)
        return result


# TorchScript or dynamo, and the operator set.
EXPORTERS = {
    "opset14": (False, 14),
    "opset17": (False, 17),
    "opset20": (False, 20),
    "opset18.dynamo": (True, 18),
    "opset20.dynamo": (True, 20),
}


def export(model, size, folder):
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    for exporter, (dynamo, opset) in EXPORTERS.items():
        path = folder / f"{exporter}.onnx"
        options = dict(input_names=["image"], output_names=["result"], opset_version=opset)
        if dynamo:
            options |= dict(external_data=False, verbose=False)
        try:
            torch.onnx.export(Result(model).eval(), (image,), path, dynamo=dynamo, **options)
        except Exception as error:
            print(f"{path}: {str(error).splitlines()[0]}", file=sys.stderr)
            path.unlink(missing_ok=True)
            continue
        strip(path)


def strip(path):
    """Takes out where each node's code stood on the machine that exported it."""
    model = onnx.load(path)
    for part in [model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions]:
        part.ClearField("doc_string")
        del part.metadata_props[:]
    del model.graph.value_info[:]
    onnx.save(model, path)


def hugging_face(name, model, size=(32, 32)):
    folder = OUT / name
    randomise(model).save_pretrained(folder)
    export(model, size, folder)


def of_timm(name, architecture, size=(32, 32), num_classes=7, **args):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model = timm.create_model(architecture, img_size=size, num_classes=num_classes, **args)
    state = {key: value.contiguous() for key, value in randomise(model).state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": num_classes,
        "global_pool": getattr(model, "global_pool", "avg"),
        "model_args": {**args, "img_size": list(size)},
        "pretrained_cfg": {"input_size": [3, *size]},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    export(model, size, folder)


dinov2 = dict(SMALL, mlp_ratio=2)
swin = dict(embed_dim=8, depths=[2, 1], num_heads=[1, 2], window_size=4, image_size=32, patch_size=4)
labels = dict(num_labels=7, intermediate_size=32)
hugging_face("hf_vit", hf.ViTForImageClassification(hf.ViTConfig(**SMALL, **labels)))
hugging_face("hf_deit", hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**SMALL, **labels)))
hugging_face("hf_dinov2", hf.Dinov2Model(hf.Dinov2Config(**dinov2)))
hugging_face("hf_dinov2_swiglu", hf.Dinov2Model(hf.Dinov2Config(use_swiglu_ffn=True, **dinov2)))
registers = hf.Dinov2WithRegistersConfig(**dinov2)
hugging_face("hf_dinov2_registers", hf.Dinov2WithRegistersModel(registers))
classifier = hf.Dinov2ForImageClassification(hf.Dinov2Config(num_labels=7, **dinov2))
hugging_face("hf_dinov2_classifier", classifier)
hugging_face("hf_swin", hf.SwinForImageClassification(hf.SwinConfig(num_labels=7, **swin)))

vit = dict(embed_dim=16, depth=2, num_heads=2, patch_size=8)
of_timm("timm_vit", "vit_tiny_patch16_224", (32, 48), **vit)
of_timm("timm_vit_qk_norm", "vit_tiny_patch16_224", qk_norm=True, **vit)
of_timm("timm_vit_gap", "vit_base_patch16_gap_224", **vit)
of_timm("timm_deit_distilled", "deit_tiny_distilled_patch16_224", **vit)
of_timm("timm_clip", "vit_base_patch16_clip_224", **vit)
of_timm("timm_dinov2_registers", "vit_small_patch14_reg4_dinov2", **vit)
of_timm("timm_dinov2_features", "vit_small_patch14_dinov2", num_classes=0, global_pool="", **vit)
grid = dict(embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4)
of_timm("timm_swin", "swin_tiny_patch4_window7_224", **grid)
of_timm("timm_swin_rectangle", "swin_tiny_patch4_window7_224", (32, 64), **grid)
