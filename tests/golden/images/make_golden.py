#!/usr/bin/env python3
"""Makes golden.json, and the images beside it: what Pillow makes of images on their way into a model.

Run in an environment with these versions, in this folder:
    pip install torch==2.11.0 torchvision==0.26.0 open_clip_torch==3.3.0 pillow==12.3.0 numpy==2.4.6 blake3==1.0.11
    python make_golden.py

Pillow 13 resizes columns first where that is cheaper, which moves a quarter of the bytes by a few levels; Pillow up to
12, with which CLIP models were made, always resizes rows first, and so does llm2clip.

golden.json holds BLAKE3 digests of pixels, channels first. `eval`: open_clip's own transform up to the tensor. `train`:
torchvision's resized_crop with a given crop, in both orders: `before` converts to RGB and then resizes (webdataset's
"pilrgb"), `after` resizes and then converts (open_clip's transform). The images are small and made here.
"""
import io
import json
import pathlib
import struct
import zlib

import numpy
import open_clip
import open_clip.transform
import PIL
import torch
from blake3 import blake3
from PIL import Image
from torchvision.transforms import InterpolationMode, functional

HERE = pathlib.Path(__file__).parent
BICUBIC = InterpolationMode.BICUBIC
assert PIL.__version__ == "12.3.0" and open_clip.__version__ == "3.3.0"


def picture(width, height, seed):
    """Slopes, edges and a little noise, so that bytes beyond 0 and 255 are asked for."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    base = numpy.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    base += 60 * numpy.sin(x / 3.0)[..., None]
    base[(x // 7 + y // 5) % 4 == 0] = random.integers(0, 256, 3)
    base += random.normal(0, 3, base.shape)
    return Image.fromarray(base.clip(0, 255).astype(numpy.uint8))


def png_of_words(name, channels, color_type, width, height):
    """A PNG of 16 bits, which Pillow cannot write."""
    random = numpy.random.default_rng(width)
    words = random.integers(0, 65536, (height, width, channels), dtype=numpy.uint16)
    words[: height // 2] = numpy.sort(words[: height // 2], axis=1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in words)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    (HERE / name).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_images():
    for old in HERE.iterdir():
        if old.suffix in {".jpg", ".png", ".webp"}:
            old.unlink()
    rgb = picture(97, 75, 1)
    y, x = numpy.mgrid[0:75, 0:97]
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(((x * 5 + y * 3) % 256).astype(numpy.uint8)))
    small = rgb.crop((0, 0, 53, 41))

    def save(name, image, **options):
        image.save(HERE / name, **options)

    save("420.jpg", rgb, quality=85)
    save("422.jpg", rgb, quality=85, subsampling=1)
    save("444.jpg", rgb, quality=80, subsampling=0)
    save("420-progressive.jpg", rgb, quality=85, progressive=True)
    save("444-progressive.jpg", rgb, quality=70, subsampling=0, progressive=True)
    save("420-restarts.jpg", rgb, quality=85, restart_marker_blocks=3)
    save("gray.jpg", rgb.convert("L"), quality=85)
    save("gray-progressive.jpg", rgb.convert("L"), quality=85, progressive=True)
    save("cmyk.jpg", rgb.convert("CMYK"), quality=85)
    save("rgb.jpg", rgb, quality=80, keep_rgb=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("turned-by-exif.jpg", rgb, quality=85, exif=exif)
    for name, (width, height) in {
        "wide": (211, 64), "tall": (50, 143), "tiny": (9, 7), "one": (1, 1), "thin": (3, 160), "flat": (170, 4),
        "odd": (127, 83), "square": (64, 64), "large": (330, 247),
    }.items():
        save(f"{name}.jpg", picture(width, height, width), quality=80)
    save("rgb.png", small)
    save("rgba.png", rgba.crop((0, 0, 53, 41)))
    save("rgba-64.png", rgba.crop((5, 5, 69, 69)))
    save("palette.png", rgb.quantize(17))
    save("palette-transparent.png", rgb.quantize(5), transparency=2)
    save("rgb-transparent.png", small, transparency=small.getpixel((3, 3)))
    save("gray.png", small.convert("L"))
    save("gray-4.png", rgb.convert("L").quantize(16).convert("L").point(lambda v: v & 0xF0), bits=4)
    save("gray-alpha.png", rgba.crop((0, 0, 53, 41)).convert("LA"))
    save("bilevel.png", rgb.convert("1"))
    png_of_words("gray-16.png", 1, 0, 39, 31)
    png_of_words("gray-alpha-16.png", 2, 4, 31, 24)
    png_of_words("rgb-16.png", 3, 2, 29, 21)
    png_of_words("rgba-16.png", 4, 6, 27, 19)
    save("lossy.webp", rgb, quality=80)
    save("lossy-alpha.webp", rgba, quality=80)
    save("lossless.webp", small, lossless=True)
    save("lossless-alpha.webp", rgba.crop((0, 0, 53, 41)), lossless=True, exact=True)


def digest(image):
    """Of an RGB image, channels first."""
    assert image.mode == "RGB"
    planes = numpy.asarray(image).transpose(2, 0, 1)
    return blake3(numpy.ascontiguousarray(planes).tobytes()).hexdigest()


def bytes_of_tensor(tensor):
    """Back from open_clip's tensor of values from 0 to 1."""
    return (tensor * 255).round().to(torch.uint8).numpy().tobytes()


def evaluated(path, size):
    """open_clip's transform for evaluation, with a normalisation that does nothing."""
    transform = open_clip.transform.image_transform(size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    return blake3(bytes_of_tensor(transform(Image.open(path)))).hexdigest()


def evaluated_before(path, size):
    transform = open_clip.transform.image_transform(size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    return blake3(bytes_of_tensor(transform(Image.open(path).convert("RGB")))).hexdigest()


def crops(width, height, random):
    """The whole image, and crops of several shapes and places."""
    yield (0, 0, height, width)
    for share in [0.9, 0.5, 0.15]:
        h = max(1, round(height * (share + (1 - share) * random.random())))
        w = max(1, round(width * (share + (1 - share) * random.random())))
        yield (int(random.integers(0, height - h + 1)), int(random.integers(0, width - w + 1)), h, w)


def main():
    write_images()
    random = numpy.random.default_rng(5)
    cases = {"eval": [], "train": []}
    for path in sorted(HERE.iterdir()):
        if path.suffix not in {".jpg", ".png", ".webp"}:
            continue
        image = Image.open(path)
        for size in [32, 64]:
            made = {"after": evaluated(path, size), "before": evaluated_before(path, size)}
            cases["eval"].append({"image": path.name, "size": size, **made})
        for i, (top, left, height, width) in enumerate(crops(*image.size, random)):
            size = [64, 32, 48, 31][i]

            def crop(image):
                return functional.resized_crop(image, top, left, height, width, [size, size], BICUBIC)

            made = {"after": digest(crop(image).convert("RGB")), "before": digest(crop(image.convert("RGB")))}
            box = {"top": top, "left": left, "height": height, "width": width}
            cases["train"].append({"image": path.name, "size": size, "crop": box, **made})
    lines = ",\n".join(f'"{part}": [\n' + ",\n".join(json.dumps(case) for case in found) + "\n]" for part, found in cases.items())
    (HERE / "golden.json").write_text("{\n" + lines + "\n}\n")


main()
