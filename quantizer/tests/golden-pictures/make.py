#!/usr/bin/env python3
"""Writes the golden files of tests/pictures.rs, with Pillow as the authority.

    pip install pillow numpy && python3 make.py

sources/   PNG crops of the photographs in models/zoo/photos
expected/  those after resize and centre crop, as torchvision computes it on
           PIL pictures; cases.csv says which is made from which, and how
decode/    the centres of the photographs' JPEGs as Pillow decodes them
modes/     one small file per kind of picture, and X.rgb.png: X as
           Image.open(X).convert("RGB") gives it
"""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent
PHOTOS = HERE.parents[2] / "models/zoo/photos"
FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


def save_png(image, path):
    path.parent.mkdir(exist_ok=True)
    image.save(path, optimize=True)


def prepare(image, resize, interpolation, height, width):
    """torchvision.transforms: Resize(int) or Resize((h, w)), then CenterCrop."""
    w, h = image.size
    if resize == "squash":
        return image.resize((width, height), FILTERS[interpolation])
    size = int(resize)
    short, long = (w, h) if w <= h else (h, w)
    new_long = int(size * long / short)
    new_w, new_h = (size, new_long) if w <= h else (new_long, size)
    image = image.resize((new_w, new_h), FILTERS[interpolation])
    top = int(round((new_h - height) / 2.0))
    left = int(round((new_w - width) / 2.0))
    return image.crop((left, top, left + width, top + height))


def resizes():
    rows = ["source,resize,interpolation,height,width,expected"]

    def case(source, image, resize, interpolation, height, width):
        name = f"{source}_{resize}_{interpolation}_{height}x{width}"
        save_png(prepare(image, resize, interpolation, height, width), HERE / f"expected/{name}.png")
        rows.append(f"{source},{resize},{interpolation},{height},{width},{name}")

    def source(name, image):
        save_png(image, HERE / f"sources/{name}.png")
        return name, image

    for i, path in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        photo = Image.open(path).convert("RGB")
        w, h = photo.size
        x, y = (w - 113) // 2, (h - 85) // 2
        part = source(path.stem, photo.crop((x, y, x + 113, y + 85)))
        case(*part, "62", "bicubic", 56, 56)
        case(*part, "61", "bilinear", 56, 56)
        case(*part, "squash", ["bicubic", "bilinear"][i % 2], 20, 24)
        case(*part, "96", ["bilinear", "bicubic"][i % 2], 96, 80)
        small = source(f"{path.stem}32", photo.resize((32, 32), Image.BOX))
        case(*small, "squash", "bicubic", 112, 112)
        if i % 3 == 0:
            case(*small, "squash", "bilinear", 112, 112)
    rocket = Image.open(PHOTOS / "rocket.jpg").convert("RGB")
    whole = source("rocket_whole", rocket)
    case(*whole, "248", "bicubic", 224, 224)
    case(*whole, "256", "bilinear", 224, 224)
    # The hardest clipping: pure black and white.
    squares = np.kron(np.indices((9, 13)).sum(0) % 2 * 255, np.ones((5, 4))).astype(np.uint8)
    board = source("board", Image.fromarray(squares).convert("RGB"))
    for resize in ["33", "70"]:
        for interpolation in FILTERS:
            case(*board, resize, interpolation, 32, 32)
    dot = source("dot", Image.new("RGB", (1, 1), (200, 10, 77)))
    case(*dot, "33", "bicubic", 32, 32)
    (HERE / "cases.csv").write_text("\n".join(rows) + "\n")


def decodes():
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        x, y = photo.width // 2 - 32, photo.height // 2 - 32
        save_png(photo.crop((x, y, x + 64, y + 64)), HERE / f"decode/{path.stem}.png")


def png16(pixels, colour_type):
    """A 16-bit PNG, which Pillow cannot write for RGB."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    h, w = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", w, h, 16, colour_type, 0, 0, 0)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + end


def modes():
    folder = HERE / "modes"
    folder.mkdir(exist_ok=True)
    photo = Image.open(PHOTOS / "coffee.jpg").convert("RGB").crop((150, 100, 190, 130))
    alpha = Image.linear_gradient("L").resize(photo.size)
    rgba = photo.copy()
    rgba.putalpha(alpha)
    grey_alpha = photo.convert("L")
    grey_alpha.putalpha(alpha)
    palette = photo.quantize(32)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    wide = np.asarray(photo).astype(np.uint16) * 256 + np.arange(256, dtype=np.uint16)[:30, None, None]
    files = {
        "rgb.png": (photo, {}),
        "rgba.png": (rgba, {}),
        "grey.png": (photo.convert("L"), {}),
        "grey_alpha.png": (grey_alpha, {}),
        "one_bit.png": (photo.convert("1"), {}),
        "palette.png": (palette, {}),
        "palette_alpha.png": (palette, {"transparency": bytes(range(0, 256, 8))}),
        "rgb.webp": (photo, {"lossless": True}),
        "rgba.webp": (rgba, {"lossless": True, "exact": True}),
        "grey.jpg": (photo.convert("L"), {"quality": 95}),
        "full_chroma.jpg": (photo, {"quality": 95, "subsampling": 0}),
        "half_chroma.jpg": (photo, {"quality": 90, "subsampling": 2}),
        "progressive.jpg": (photo, {"quality": 90, "progressive": True}),
        "cmyk.jpg": (photo.convert("CMYK"), {"quality": 95}),
        "rotated.jpg": (photo, {"quality": 95, "exif": rotated}),
        "lossy.webp": (photo, {"quality": 90}),
    }
    for name, (image, options) in files.items():
        image.save(folder / name, **options)
    (folder / "rgb16.png").write_bytes(png16(wide, 2))
    (folder / "rgba16.png").write_bytes(png16(np.concatenate([wide, wide[:, :, :1]], 2), 6))
    for path in sorted(folder.iterdir()):
        if not path.name.endswith(".rgb.png"):
            save_png(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"), folder / f"{path.name}.rgb.png")


resizes()
decodes()
modes()
