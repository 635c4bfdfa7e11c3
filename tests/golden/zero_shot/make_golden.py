"""A zero-shot classifier as open_clip makes it (`build_zero_shot_classifier` over a model whose text side is a table), and the
images that it gets right by torch.topk, as open_clip_train counts them (whose own `accuracy` does not run with numpy 2.4).
Writes golden.json beside this file.

    python make_golden.py        (torch 2.11, open_clip_torch 3.3.0)
"""

import json
import pathlib

import torch
from open_clip import build_zero_shot_classifier

CLASSES, WIDTH, IMAGES = 13, 6, 41
TEMPLATES = ["a photo of a {}.", "art of the {}.", "{}"]


class Table(torch.nn.Module):
    """A text side that looks its features up: open_clip normalises, averages and normalises them."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def encode_text(self, rows, normalize):
        found = self.features[rows]
        return torch.nn.functional.normalize(found, dim=-1) if normalize else found


def main():
    generator = torch.Generator().manual_seed(11)
    names = [f"thing {number}" for number in range(CLASSES)]
    texts = [template.format(name) for name in names for template in TEMPLATES]
    # Features that are not normalised, those of a class not far from each other.
    classes = torch.randn(CLASSES, WIDTH, generator=generator).repeat_interleave(len(TEMPLATES), dim=0)
    features = 3 * (classes + 0.6 * torch.randn(len(texts), WIDTH, generator=generator))
    place = {text: row for row, text in enumerate(texts)}
    weights = build_zero_shot_classifier(
        Table(features), lambda wanted: torch.tensor([place[text] for text in wanted]), names, TEMPLATES, 5
    )
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    noise = 0.9 * torch.randn(IMAGES, WIDTH, generator=generator)
    images = torch.nn.functional.normalize(weights.T[labels] + noise, dim=-1)
    found = (100.0 * images @ weights).topk(5, dim=1).indices == labels[:, None]
    out = {
        "classes": CLASSES,
        "templates": len(TEMPLATES),
        "width": WIDTH,
        "features": features.flatten().tolist(),
        "weights": weights.T.flatten().tolist(),
        "images": images.flatten().tolist(),
        "labels": labels.tolist(),
        "top_1": int(found[:, :1].any(dim=1).sum()),
        "top_5": int(found.any(dim=1).sum()),
    }
    path = pathlib.Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(out, indent=1) + "\n")


main()
