"""Seeded random Vision Transformers and Swins as ONNX, in the shape of timm's exports.

    image [1, 3, s, s]
      -> Conv p x p, stride p -> Reshape, Transpose -> [1, (s/p)^2, d]
      -> Concat class token, Add position embedding -> [1, n, d]
      -> depth x  x += proj(attention(norm1(x)))
                  x += fc2(gelu(fc1(norm2(x))))
      -> norm, class token -> head -> logits [1, 1000]

Speed depends on shapes and graph, not on what was learned, so the weights are
random: N(0, 1/k) for k inputs, which keeps every activation of order one. The
nodes are those that torch.onnx writes for timm at opset 17 with a fixed batch:
LayerNormalization, MatMul + Add for linear layers, one qkv product split by
Reshape, Transpose and Split, both operands of q k^T scaled by d_h^(-1/4), GELU
as Div, Erf, Add, Mul, Mul; for Swin, rolls as Slice and Concat, windows as Reshape
and Transpose, position bias and mask as constants added to the scores.
"""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 1000


class Vit(NamedTuple):
    """Width d, heads h, depth, patch p and picture side s, in pixels."""

    width: int
    heads: int
    depth: int = 12
    patch: int = 16
    side: int = 224

    @property
    def tokens(self):
        return (self.side // self.patch) ** 2 + 1


class Swin(NamedTuple):
    """Width d of the first stage and heads h in it, both doubled by each stage."""

    width: int
    heads: int
    depths: tuple = (2, 2, 6, 2)
    patch: int = 4
    window: int = 7
    side: int = 224


MODELS = {
    "deit-t": Vit(192, 3),
    "deit-s": Vit(384, 6),
    "vit-s14": Vit(384, 6, patch=14),
    "vit-b": Vit(768, 12),
    "swin-t": Swin(96, 3),
}


class Graph:
    """Nodes and initializers in the order in which they are written."""

    def __init__(self, seed):
        self.nodes, self.initializers = [], []
        self.random = np.random.default_rng(seed)

    def constant(self, name, value):
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def floats(self, name, shape, deviation, mean=0.0):
        values = mean + deviation * self.random.standard_normal(shape)
        return self.constant(name, values.astype(np.float32))

    def node(self, op, inputs, name, outputs=None, **attributes):
        outputs = outputs or [f"{name}_output_0"]
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def linear(self, x, name, k, n):
        weight = self.floats(f"{name}.weight", (k, n), k**-0.5)
        bias = self.floats(f"{name}.bias", (n,), 0.02)
        product = self.node("MatMul", [x, weight], f"/{name}/MatMul")
        return self.node("Add", [bias, product], f"/{name}/Add")

    def layer_norm(self, x, name, d):
        gamma = self.floats(f"{name}.weight", (d,), 0.1, mean=1.0)
        beta = self.floats(f"{name}.bias", (d,), 0.1)
        return self.node(
            "LayerNormalization", [x, gamma, beta], f"/{name}/LayerNormalization", axis=-1, epsilon=1e-6
        )

    def reshape(self, x, name, shape):
        shape = self.constant(f"{name}.shape", np.array(shape, np.int64))
        return self.node("Reshape", [x, shape], f"/{name}", allowzero=0)


def attention(g, x, name, heads, d, n, batch=1, offsets=()):
    """Of `batch` groups of n tokens; `offsets` are added to the scores in turn."""
    h = heads
    qkv = g.linear(x, f"{name}.qkv", d, 3 * d)
    qkv = g.reshape(qkv, f"{name}/Reshape", [batch, n, 3, h, d // h])
    qkv = g.node("Transpose", [qkv], f"/{name}/Transpose", perm=[2, 0, 3, 1, 4])
    ones = g.constant(f"{name}.split", np.array([1, 1, 1], np.int64))
    parts = [f"/{name}/Split_output_{i}" for i in range(3)]
    g.node("Split", [qkv, ones], f"/{name}/Split", parts, axis=0)
    first = g.constant(f"{name}.first", np.array([0], np.int64))
    q, k, v = (g.node("Squeeze", [p, first], f"/{name}/Squeeze_{i}") for i, p in enumerate(parts))
    root = g.constant(f"{name}.scale", np.float32((d // h) ** -0.25))
    k = g.node("Transpose", [k], f"/{name}/Transpose_1", perm=[0, 1, 3, 2])
    q = g.node("Mul", [q, root], f"/{name}/Mul")
    k = g.node("Mul", [k, root], f"/{name}/Mul_1")
    scores = g.node("MatMul", [q, k], f"/{name}/MatMul")
    for i, offset in enumerate(offsets):
        scores = g.node("Add", [scores, g.constant(f"{name}.offset_{i}", offset)], f"/{name}/Add_{i}")
    scores = g.node("Softmax", [scores], f"/{name}/Softmax", axis=-1)
    out = g.node("MatMul", [scores, v], f"/{name}/MatMul_1")
    out = g.node("Transpose", [out], f"/{name}/Transpose_2", perm=[0, 2, 1, 3])
    out = g.reshape(out, f"{name}/Reshape_1", [batch, n, d])
    return g.linear(out, f"{name}.proj", d, d)


def roll(g, x, name, shift):
    """`[1, s, s, d]` rolled by `shift` down and to the right: a Slice, a Slice and a Concat an axis."""
    for axis in (1, 2):
        parts = []
        for part, (start, end) in enumerate([(-shift, 2**31), (0, -shift)]):
            bounds = [
                g.constant(f"{name}.{axis}.{part}.{key}", np.array([value], np.int64))
                for key, value in (("start", start), ("end", end), ("axis", axis))
            ]
            parts.append(g.node("Slice", [x, *bounds], f"/{name}/Slice_{axis}_{part}"))
        x = g.node("Concat", parts, f"/{name}/Concat_{axis}", axis=axis)
    return x


def windows(g, x, name, side, w, d):
    """`[1, side, side, d]` to `[windows, w * w, d]`."""
    x = g.reshape(x, f"{name}/Reshape", [1, side // w, w, side // w, w, d])
    x = g.node("Transpose", [x], f"/{name}/Transpose", perm=[0, 1, 3, 2, 4, 5])
    return g.reshape(x, f"{name}/Reshape_1", [(side // w) ** 2, w * w, d])


def grid(g, x, name, side, w, d):
    """Back from `windows`."""
    x = g.reshape(x, f"{name}/Reshape_2", [1, side // w, side // w, w, w, d])
    x = g.node("Transpose", [x], f"/{name}/Transpose_1", perm=[0, 1, 3, 2, 4, 5])
    return g.reshape(x, f"{name}/Reshape_3", [1, side, side, d])


def position_bias(g, w, heads):
    """`[1, heads, w * w, w * w]` of a random table of relative positions."""
    table = g.random.standard_normal(((2 * w - 1) ** 2, heads)).astype(np.float32)
    y, x = np.divmod(np.arange(w * w), w)
    index = (y[:, None] - y + w - 1) * (2 * w - 1) + x[:, None] - x + w - 1
    return np.ascontiguousarray(table[index].transpose(2, 0, 1))[None]


def shift_mask(side, w, shift):
    """`[windows, 1, w * w, w * w]`: -100 between tokens that the roll alone made neighbours."""
    region = np.digitize(np.arange(side), [side - w, side - shift])
    region = (3 * region[:, None] + region).reshape(side // w, w, side // w, w)
    region = region.transpose(0, 2, 1, 3).reshape(-1, 1, w * w)
    return np.where(region[..., None] == region[:, :, None, :], 0, -100).astype(np.float32)


def swin(g, model):
    """From `image` to the last norm's mean, `[1, d]`; also d."""
    d, w, side = model.width, model.window, model.side // model.patch
    x = conv(g, d, model.patch)
    x = g.node("Transpose", [x], "/patch_embed/Transpose", perm=[0, 2, 3, 1])
    x = g.layer_norm(x, "patch_embed.norm", d)
    for stage, depth in enumerate(model.depths):
        if stage > 0:
            merge = f"layers.{stage}.downsample"
            x = g.reshape(x, f"{merge}/Reshape", [1, side // 2, 2, side // 2, 2, d])
            x = g.node("Transpose", [x], f"/{merge}/Transpose", perm=[0, 1, 3, 4, 2, 5])
            side //= 2
            x = g.reshape(x, f"{merge}/Reshape_1", [1, side, side, 4 * d])
            x = g.layer_norm(x, f"{merge}.norm", 4 * d)
            weight = g.floats(f"{merge}.reduction.weight", (4 * d, 2 * d), (4 * d) ** -0.5)
            x = g.node("MatMul", [x, weight], f"/{merge}/reduction/MatMul")
            d *= 2
        heads = model.heads << stage
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}"
            shift = w // 2 if i % 2 == 1 and side > w else 0
            count = (side // w) ** 2
            offsets = [position_bias(g, w, heads)]
            y = g.layer_norm(x, f"{block}.norm1", d)
            if shift:
                offsets.append(shift_mask(side, w, shift))
                y = roll(g, y, f"{block}/roll", -shift % side)
            y = windows(g, y, block, side, w, d)
            y = attention(g, y, f"{block}.attn", heads, d, w * w, count, offsets)
            y = grid(g, y, block, side, w, d)
            if shift:
                y = roll(g, y, f"{block}/roll_1", shift)
            x = g.node("Add", [x, y], f"/{block}/Add")
            x = mlp(g, x, block, d)
    x = g.layer_norm(x, "norm", d)
    return g.node("ReduceMean", [x], "/head/ReduceMean", axes=[1, 2], keepdims=0), d


def gelu(g, x, name):
    constants = [g.constant(f"{name}.{key}", np.float32(c)) for key, c in (("root", 2**0.5), ("one", 1), ("half", 0.5))]
    root, one, half = constants
    y = g.node("Div", [x, root], f"/{name}/Div")
    y = g.node("Erf", [y], f"/{name}/Erf")
    y = g.node("Add", [y, one], f"/{name}/Add")
    y = g.node("Mul", [x, y], f"/{name}/Mul")
    return g.node("Mul", [y, half], f"/{name}/Mul_1")


def mlp(g, x, block, d):
    y = g.layer_norm(x, f"{block}.norm2", d)
    y = g.linear(y, f"{block}.mlp.fc1", d, 4 * d)
    y = gelu(g, y, f"{block}.mlp.act")
    y = g.linear(y, f"{block}.mlp.fc2", 4 * d, d)
    return g.node("Add", [x, y], f"/{block}/Add_1")


def conv(g, d, p):
    """The patch embedding, `[1, d, s / p, s / p]`."""
    weight = g.floats("patch_embed.proj.weight", (d, 3, p, p), (3 * p * p) ** -0.5)
    bias = g.floats("patch_embed.proj.bias", (d,), 0.02)
    return g.node("Conv", ["image", weight, bias], "/patch_embed/proj/Conv", kernel_shape=[p, p], strides=[p, p])


def vit(g, model):
    """From `image` to the normalised class token, `[1, d]`; also d."""
    d, n = model.width, model.tokens
    x = conv(g, d, model.patch)
    x = g.reshape(x, "patch_embed/Reshape", [1, d, n - 1])
    x = g.node("Transpose", [x], "/patch_embed/Transpose", perm=[0, 2, 1])
    token = g.floats("cls_token", (1, 1, d), 0.5)
    x = g.node("Concat", [token, x], "/Concat", axis=1)
    x = g.node("Add", [x, g.floats("pos_embed", (1, n, d), 0.5)], "/Add")
    for i in range(model.depth):
        block = f"blocks.{i}"
        y = g.layer_norm(x, f"{block}.norm1", d)
        y = attention(g, y, f"{block}.attn", model.heads, d, n)
        x = g.node("Add", [x, y], f"/{block}/Add")
        x = mlp(g, x, block, d)
    x = g.layer_norm(x, "norm", d)
    return g.node("Gather", [x, g.constant("class_token", np.int64(0))], "/Gather", axis=1), d


def build(model, seed=0):
    """The ONNX model of a `Vit` or a `Swin`."""
    g = Graph(seed)
    x, d = (swin if isinstance(model, Swin) else vit)(g, model)
    head = g.floats("head.weight", (CLASSES, d), d**-0.5)
    bias = g.floats("head.bias", (CLASSES,), 0.02)
    g.node("Gemm", [x, head, bias], "/head/Gemm", ["logits"], alpha=1.0, beta=1.0, transB=1)

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, model.side, model.side])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])
    graph = helper.make_graph(g.nodes, "main_graph", [image], [logits], g.initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made
