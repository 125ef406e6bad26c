"""Runs quantized Vision Transformers in integers.

>>> model = tpvit.Model("vit.tpv")
>>> logits = model.run(pixels)  # uint8 [height, width, 3] -> float32 [classes]
"""

from ._tpvit import Model, __version__

__all__ = ["Model", "__version__"]
