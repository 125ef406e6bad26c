#!/usr/bin/env python3
"""Writes PyTorch's gradients of small checkpoints, for the training network's test.

    pip install torch timm safetensors
    python tools/make_gradients.py quantizer/tests/fixtures/checkpoints

The loss is `sum over i of cos(i) * logits[i]` for the picture
`image[c, y, x] = sin(0.7 y + 1.3 x + 2.1 c)`; `gradients.safetensors` holds the
gradient of each tensor under the tensor's name.
"""

import json
import pathlib
import sys

import timm
import torch
from safetensors.torch import load_file, save_file

for name in ["timm_vit", "timm_vit_qk_norm", "timm_vit_gap", "timm_swin_rectangle"]:
    folder = pathlib.Path(sys.argv[1]) / name
    config = json.loads((folder / "config.json").read_text())
    args = config["model_args"]
    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **args).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    height, width = args["img_size"]
    c, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (3, height, width)), indexing="ij")
    image = torch.sin(0.7 * y + 1.3 * x + 2.1 * c).float()[None]
    logits = model(image)[0]
    (logits * torch.cos(torch.arange(len(logits), dtype=torch.float64)).float()).sum().backward()
    gradients = {key: value.grad.contiguous() for key, value in model.named_parameters()}
    save_file(gradients, folder / "gradients.safetensors")
    print(name, sum(value.numel() for value in gradients.values()))
