#!/usr/bin/env python3
"""Makes images/, golden.json and pixels.bin: what Pillow and torchvision make of images.

Run in an environment with exactly these versions, in this folder:
    pip install torch==2.11.0 torchvision==0.26.0 pillow==12.3.0 numpy==2.4.6
    python make_golden.py

Pillow 13 resizes columns first where that is cheaper, which moves a quarter of the bytes by a few levels; Pillow up to
12, with which CLIP models were made, always resizes rows first, and so does llm2clip.

golden.json names byte ranges of pixels.bin (rows of RGB bytes). `decode`: Image.open(..).convert("RGB"). `crop`:
transforms.functional.resized_crop. `eval`: Resize, CenterCrop. `params`: RandomResizedCrop.get_params beside the numbers
that it drew.
"""
import json
import pathlib

import numpy
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional

HERE = pathlib.Path(__file__).parent
IMAGES = HERE / "images"
BICUBIC = InterpolationMode.BICUBIC
pixels = bytearray()


def keep(image):
    """Appends an image's pixels and returns where they are."""
    data = image.tobytes()
    assert image.mode == "RGB" and len(data) == image.width * image.height * 3
    pixels.extend(data)
    return {"width": image.width, "height": image.height, "offset": len(pixels) - len(data), "length": len(data)}


def picture(width, height, seed):
    """Slopes, edges and noise."""
    random = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    base = numpy.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    base += 40 * numpy.sin(x / 3.0)[..., None]
    base[(x // 7 + y // 5) % 4 == 0] = random.integers(0, 256, 3)
    base += random.normal(0, 12, base.shape)
    return Image.fromarray(base.clip(0, 255).astype(numpy.uint8), "RGB")


def write_images():
    IMAGES.mkdir(exist_ok=True)
    for old in IMAGES.iterdir():
        old.unlink()
    rgb = picture(67, 45, 1)
    alpha = Image.fromarray(numpy.tile(numpy.arange(67, dtype=numpy.uint8) * 3, (45, 1)), "L")
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    wide = numpy.random.default_rng(2).integers(0, 65536, (21, 19), dtype=numpy.uint16)

    def save(name, image, **options):
        image.save(IMAGES / name, **options)

    save("420.jpg", rgb, quality=90)
    save("444.jpg", rgb, quality=90, subsampling=0)
    save("422-progressive.jpg", rgb, quality=75, subsampling=1, progressive=True)
    save("gray.jpg", rgb.convert("L"), quality=90)
    save("cmyk.jpg", rgb.convert("CMYK"), quality=95)
    save("rgb.png", rgb)
    save("rgba.png", rgba)
    save("palette.png", rgb.quantize(17))
    save("palette-transparent.png", rgb.quantize(5), transparency=2)
    save("rgb-transparent.png", rgb, transparency=(255, 0, 0))
    save("gray.png", rgb.convert("L"))
    save("gray-alpha.png", rgba.convert("LA"))
    save("bilevel.png", rgb.convert("1"))
    save("gray-16.png", Image.fromarray(wide))
    save("lossy.webp", rgb, quality=80)
    save("lossy-alpha.webp", rgba, quality=80)
    save("lossless.webp", rgb, lossless=True)
    save("lossless-alpha.webp", rgba, lossless=True, exact=True)
    save("png-by-nature.jpg", rgb, format="PNG")
    for name, (width, height) in {"landscape": (180, 97), "portrait": (61, 131), "small": (20, 23), "square": (64, 64)}.items():
        save(f"{name}.png", picture(width, height, width))


def opened(name):
    return Image.open(IMAGES / name).convert("RGB")


def transforms():
    crops, evals = [], []
    torch.manual_seed(0)
    for name in ["landscape.png", "portrait.png", "small.png", "square.png", "420.jpg"]:
        image = opened(name)
        for size in [32, 49, 64]:
            for scale in [(0.9, 1.0), (0.08, 1.0)]:
                top, left, height, width = RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
                made = functional.resized_crop(image, top, left, height, width, [size, size], BICUBIC, antialias=True)
                crop = {"top": top, "left": left, "height": height, "width": width}
                crops.append({"image": name, "size": size, "crop": crop, "pixels": keep(made)})
            made = Compose([Resize(size, BICUBIC), CenterCrop(size)])(image)
            evals.append({"image": name, "size": size, "pixels": keep(made)})
    return crops, evals


def params():
    drawn = []
    uniform, randint = torch.Tensor.uniform_, torch.randint

    def recorded_uniform(tensor, low, high):
        uniform(tensor, low, high)
        drawn.append(tensor.item())
        return tensor

    def recorded_randint(low, high, size):
        value = randint(low, high, size=size)
        drawn.append(value.item())
        return value

    torch.Tensor.uniform_, torch.randint = recorded_uniform, recorded_randint
    cases = []
    torch.manual_seed(1)
    settings = [((0.9, 1.0), (3 / 4, 4 / 3)), ((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.5, 2.0))]
    for scale, ratio in settings:
        for width, height in [(102, 96), (96, 102), (384, 256), (256, 384), (640, 360), (1, 1), (1, 50), (7, 2), (500, 375)]:
            for _ in range(4):
                drawn.clear()
                top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), list(scale), list(ratio))
                crop = {"top": top, "left": left, "height": h, "width": w}
                cases.append({"width": width, "height": height, "scale": scale, "ratio": ratio, "drawn": list(drawn), "crop": crop})
    torch.Tensor.uniform_, torch.randint = uniform, randint
    return cases


def main():
    write_images()
    names = sorted(path.name for path in IMAGES.iterdir())
    decode = [{"image": name, "pixels": keep(opened(name))} for name in names]
    crops, evals = transforms()
    golden = {"decode": decode, "crop": crops, "eval": evals, "params": params()}
    lines = ",\n".join(
        f'"{part}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]" for part, cases in golden.items()
    )
    (HERE / "golden.json").write_text("{\n" + lines + "\n}\n")
    (HERE / "pixels.bin").write_bytes(pixels)


main()
