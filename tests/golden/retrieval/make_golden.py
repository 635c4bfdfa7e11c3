"""Recall as a peer counts it: several captions an image by torch.topk over the whole matrix, and one caption an image by
open_clip's own `get_clip_metrics`. Writes golden.json beside this file.

    python make_golden.py        (torch 2.11, open_clip_torch 3.3.0)
"""

import json
import pathlib

import torch
from open_clip_train.train import get_clip_metrics

CUTS = (1, 5, 10)


def unit(rows, width, generator):
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


def recalls(scores, own):
    """The share of queries with at least one of their own targets among the k best; `own` marks them."""
    found = {}
    for cut in CUTS:
        best = scores.topk(min(cut, scores.shape[1]), dim=1).indices
        found[str(cut)] = own.gather(1, best).any(dim=1).double().mean().item()
    return found


def main():
    generator = torch.Generator().manual_seed(5)
    # Images have one to seven captions, as in COCO.
    counts = torch.randint(1, 8, (23,), generator=generator)
    owners = torch.repeat_interleave(torch.arange(23), counts)
    image = unit(23, 5, generator)
    text = torch.nn.functional.normalize(image[owners] + 0.9 * unit(len(owners), 5, generator), dim=1)
    own = owners[None, :] == torch.arange(23)[:, None]
    scores = image @ text.T
    several = {
        "image": image.flatten().tolist(),
        "text": text.flatten().tolist(),
        "owners": owners.tolist(),
        "image_to_text": recalls(scores, own),
        "text_to_image": recalls(scores.T, own.T),
    }
    first = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)[:-1]])
    metrics = get_clip_metrics(image, text[first], torch.tensor(1.0))
    one = {
        direction: {str(cut): float(metrics[f"{direction}_R@{cut}"]) for cut in CUTS}
        for direction in ("image_to_text", "text_to_image")
    }
    out = {"width": 5, "several": several, "one": {"first": first.tolist(), **one}}
    path = pathlib.Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(out, indent=1) + "\n")


main()
