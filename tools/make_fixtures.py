#!/usr/bin/env python3
"""Makes small ONNX exports of the architectures that tpvit imports.

    pip install torch timm transformers onnx onnxscript
    python tools/make_fixtures.py FOLDER [NAME ...]
    TPVIT_EXPORTS=FOLDER cargo test --test import_exports -- --nocapture

Every model has seeded random weights, in which nothing is zero, one or alike
that a trained model has different, and is written as

    NAME.npz            `image` [2, 3, height, width] and PyTorch's `logits`
    NAME.f32            the same two arrays, little-endian, one after the other
    NAME.EXPORTER.onnx  by each exporter and operator set of EXPORTERS

Without names, all of MODELS are made; `--list` prints them.
"""

import argparse
import pathlib
import warnings

import numpy
import torch

# TorchScript or dynamo, operator set, dynamic batch
EXPORTERS = {
    "opset14": (False, 14, True),
    "opset17": (False, 17, True),
    "opset17.fixed": (False, 17, False),
    "opset20": (False, 20, True),
    "opset18.dynamo": (True, 18, False),
    "opset18.dynamo.batch": (True, 18, True),
    "opset20.dynamo": (True, 20, False),
}
CLASSES = 7


def timm_vit(**changes):
    """Class token, 3 blocks of width 64, patches of 8 in 32 x 32 pixels."""
    from timm.models.vision_transformer import VisionTransformer

    config = dict(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=2)
    return VisionTransformer(**{**config, "num_classes": CLASSES, **changes})


def timm_distilled(**changes):
    from timm.models.deit import VisionTransformerDistilled

    config = dict(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=2)
    return VisionTransformerDistilled(**{**config, "num_classes": CLASSES, **changes})


def timm_dinov2(**changes):
    """Registers, LayerScale, SwiGLU: DINOv2-giant in small."""
    from timm.layers import SwiGLUPacked

    swiglu = dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=5.25)
    return timm_vit(**{"init_values": 1.0, **swiglu, **changes})


def timm_swin(**changes):
    """Two stages, windows of 4 in grids of 16 and 8."""
    from timm.models.swin_transformer import SwinTransformer

    config = dict(img_size=64, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4)
    return SwinTransformer(**{**config, "num_classes": CLASSES, **changes})


def timm_swin_v2():
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    config = dict(img_size=64, embed_dim=32, depths=(2, 2), num_heads=(2, 4), window_size=4)
    return SwinTransformerV2(num_classes=CLASSES, **config)


def timm_parallel():
    from timm.models.vision_transformer import ParallelScalingBlock

    return timm_vit(block_fn=ParallelScalingBlock)


def hugging_face(kind, **changes):
    """A model of transformers, which returns its first output."""
    import transformers

    config_of = {
        "ViTForImageClassification": "ViTConfig",
        "ViTModel": "ViTConfig",
        "DeiTForImageClassification": "DeiTConfig",
        "DeiTForImageClassificationWithTeacher": "DeiTConfig",
        "SwinForImageClassification": "SwinConfig",
        "SwinModel": "SwinConfig",
        "Dinov2Model": "Dinov2Config",
        "Dinov2ForImageClassification": "Dinov2Config",
        "Dinov2WithRegistersModel": "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification": "Dinov2WithRegistersConfig",
    }[kind]
    vit = dict(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=256,
        image_size=32,
        patch_size=8,
    )
    swin = dict(
        image_size=64,
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    )
    shape = swin if "Swin" in kind else vit
    config = getattr(transformers, config_of)(num_labels=CLASSES, **{**shape, **changes})
    return getattr(transformers, kind)(config)


def resized(model, size):
    """`model` for pictures of another size: positions interpolated in the graph."""
    model.picture_size = size
    return model


def first_output(model):
    """`model` as a function of the picture alone, with one output."""

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            result = self.model(image)
            return result if isinstance(result, torch.Tensor) else result[0]

    return First()


def features(model):
    """The normalised tokens of a timm model."""

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image):
            return self.model.forward_features(image)

    return Features()


MODELS = {
    # timm, ViT
    "vit": lambda: timm_vit(),
    "vit_layerscale": lambda: timm_vit(init_values=1.0),
    "vit_gap": lambda: timm_vit(global_pool="avg", class_token=False),
    "vit_gap_class": lambda: timm_vit(global_pool="avg"),
    "vit_gap_norm": lambda: timm_vit(global_pool="avg", fc_norm=False),
    "vit_gap_norm_registers": lambda: timm_vit(global_pool="avg", fc_norm=False, reg_tokens=3),
    "vit_qknorm": lambda: timm_vit(qk_norm=True),
    "vit_qknorm_gap": lambda: timm_vit(qk_norm=True, global_pool="avg", class_token=False, init_values=1.0),
    "vit_registers": lambda: timm_vit(reg_tokens=4, no_embed_class=True),
    "vit_norm_pre": lambda: timm_vit(pre_norm=True, norm_layer=torch.nn.LayerNorm, depth=2, embed_dim=48, num_heads=3),
    "vit_fc_norm": lambda: timm_vit(fc_norm=True),
    "vit_no_qkv_bias": lambda: timm_vit(qkv_bias=False),
    "vit_heads80": lambda: timm_vit(img_size=(28, 42), patch_size=14, embed_dim=160, depth=2),
    "vit_heads64": lambda: timm_vit(img_size=(32, 96), patch_size=(16, 32), embed_dim=64, depth=1, num_heads=1),
    "vit_patch32": lambda: timm_vit(img_size=(64, 96), patch_size=32, embed_dim=96, num_heads=3, depth=5),
    "vit_pooled": lambda: timm_vit(num_classes=0),
    "vit_features": lambda: features(timm_vit(num_classes=0)),
    "dinov2_giant": lambda: features(timm_dinov2(depth=2, embed_dim=32, reg_tokens=4, no_embed_class=True, num_classes=0)),
    "dinov2_giant_classes": lambda: timm_dinov2(),
    "deit_distilled": lambda: timm_distilled(),
    # timm, Swin
    "swin": lambda: timm_swin(),
    "swin_wide": lambda: timm_swin(img_size=(48, 96), embed_dim=16, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=3),
    "swin_whole": lambda: timm_swin(img_size=(56, 112), depths=(2, 3), window_size=7),
    "swin_deep": lambda: timm_swin(img_size=64, depths=(2, 4, 2), num_heads=(1, 2, 4), window_size=(2, 4)),
    "swin_window8": lambda: timm_swin(img_size=128, depths=(2, 2), window_size=8),
    "swin_features": lambda: timm_swin(num_classes=0),
    # Hugging Face transformers
    "hf_vit": lambda: hugging_face("ViTForImageClassification", num_hidden_layers=2, hidden_size=48, num_attention_heads=3),
    "hf_vit_wide": lambda: hugging_face("ViTForImageClassification", image_size=(32, 48), qkv_bias=False),
    "hf_vit_model": lambda: hugging_face("ViTModel"),
    "hf_vit_eager": lambda: hugging_face("ViTForImageClassification", attn_implementation="eager"),
    "hf_deit": lambda: hugging_face("DeiTForImageClassification"),
    "hf_deit_distilled": lambda: hugging_face("DeiTForImageClassificationWithTeacher"),
    "hf_swin": lambda: hugging_face("SwinForImageClassification", embed_dim=16),
    "hf_swin_eps": lambda: hugging_face("SwinForImageClassification", layer_norm_eps=1e-3, image_size=96, window_size=3, depths=[2, 3, 2], num_heads=[1, 2, 4]),
    "hf_swin_eager": lambda: hugging_face("SwinForImageClassification", attn_implementation="eager"),
    "hf_swin_model": lambda: hugging_face("SwinModel"),
    "hf_dinov2": lambda: hugging_face("Dinov2Model"),
    "hf_dinov2_resized": lambda: resized(hugging_face("Dinov2Model", image_size=48), (32, 40)),
    "hf_dinov2_swiglu": lambda: hugging_face("Dinov2Model", use_swiglu_ffn=True),
    "hf_dinov2_classes": lambda: hugging_face("Dinov2ForImageClassification"),
    "hf_dinov2_registers": lambda: hugging_face("Dinov2WithRegistersModel"),
    "hf_dinov2_registers_classes": lambda: hugging_face("Dinov2WithRegistersForImageClassification"),
    # Refused, each with the node that does not fit
    "refused_padded": lambda: timm_swin(img_size=60),
    "refused_odd": lambda: timm_swin(img_size=60, window_size=5, depths=(1, 1, 1), num_heads=(1, 1, 1)),
    "refused_tanh": lambda: timm_vit(act_layer="gelu_tanh"),
    "refused_quick_gelu": lambda: timm_vit(act_layer="quick_gelu"),
    "refused_parallel": lambda: timm_parallel(),
    "refused_swin_v2": lambda: timm_swin_v2(),
    "refused_hf_absolute": lambda: hugging_face("SwinForImageClassification", use_absolute_embeddings=True),
    "refused_max_pool": lambda: timm_vit(global_pool="max"),
}


def image_size(model):
    for module in model.modules():
        if hasattr(module, "picture_size"):
            return module.picture_size
        size = getattr(getattr(module, "patch_embed", None), "img_size", None)
        size = size or getattr(getattr(module, "config", None), "image_size", None)
        if size is not None:
            return (size, size) if isinstance(size, int) else tuple(size)
    raise ValueError("a model without a size")


def randomise(model):
    """Weights as at the start of training, but no bias, gain or token alike."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            matrix = parameter.dim() >= 2 and name.endswith("weight")
            if matrix:
                parameter.copy_(noise * (parameter[0].numel() ** -0.5))
            elif parameter.dim() >= 2:  # tokens, positions, tables of position bias
                parameter.copy_(0.5 * noise)
            else:
                parameter.add_(0.2 * noise)


def export(model, image, path, dynamo, opset, dynamic):
    names = dict(input_names=["image"], output_names=["logits"])
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
        example = image if dynamic else image[:1]
        torch.onnx.export(
            model, (example,), path, dynamo=True, opset_version=opset,
            dynamic_shapes=shapes, external_data=False, verbose=False, **names,
        )
    else:
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}} if dynamic else None
        torch.onnx.export(
            model, (image[:1],), path, dynamo=False, opset_version=opset,
            dynamic_axes=axes, **names,
        )


def strip(path):
    """Removes what no reader needs: where in the code each node comes from."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    onnx.save(model, path)


def make(name, folder, exporters, stripped):
    torch.manual_seed(sum(map(ord, name)))
    model = first_output(MODELS[name]()).eval()
    randomise(model)
    height, width = image_size(model)
    image = torch.randn(2, 3, height, width)
    with torch.no_grad():
        logits = model(image)
    arrays = [array.numpy().astype("<f4") for array in (image, logits)]
    numpy.savez(folder / f"{name}.npz", image=arrays[0], logits=arrays[1])
    (folder / f"{name}.f32").write_bytes(b"".join(array.tobytes() for array in arrays))
    for exporter in exporters:
        path = folder / f"{name}.{exporter}.onnx"
        try:
            export(model, image, path, *EXPORTERS[exporter])
            if stripped:
                strip(path)
            print(path, flush=True)
        except Exception as error:  # torch raises whatever it likes
            first = str(error).strip().splitlines()
            print(f"{path} is not made: {type(error).__name__}: {first[:1]}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, nargs="?")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--exporter", action="append", choices=EXPORTERS)
    parser.add_argument("--strip", action="store_true", help="without the exporter's notes")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list or arguments.folder is None:
        print("\n".join(MODELS))
        return
    warnings.filterwarnings("ignore")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or MODELS:
        make(name, arguments.folder, arguments.exporter or EXPORTERS, arguments.strip)


if __name__ == "__main__":
    main()
