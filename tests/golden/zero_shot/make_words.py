"""The words of zero-shot classification that open_clip publishes, as data of the trainer: ImageNet's class names with their
WordNet numbers, and the sets of templates. Writes worker/src/data/classes/{openai-imagenet,templates}.json.

    python make_words.py        (open_clip_torch 3.3.0, timm 1.0.31)

A template is a function of the class there and a text here: `{c}` stands for the class.
"""

import json
import pathlib

import timm
from open_clip import zero_shot_metadata as words

OUT = pathlib.Path(__file__).resolve().parents[3] / "worker/src/data/classes"


def texts(templates):
    return [template("{c}") for template in templates]


def lines(open_, rows, close):
    """One row a line, so that a change shows."""
    return open_ + "\n" + ",\n".join(rows) + "\n" + close + "\n"


def main():
    # ImageNet's classes are numbered in the order of their WordNet numbers, which are the folders of the training set.
    synsets = (pathlib.Path(timm.__file__).parent / "data/_info/imagenet_synsets.txt").read_text().split()
    assert synsets == sorted(synsets) and len(synsets) == len(words.IMAGENET_CLASSNAMES) == 1000
    pairs = [json.dumps(pair, ensure_ascii=False) for pair in zip(synsets, words.IMAGENET_CLASSNAMES)]
    (OUT / "openai-imagenet.json").write_text(lines("[", pairs, "]"))
    sets = {
        "one": ["a photo of a {c}."],
        "simple": texts(words.SIMPLE_IMAGENET_TEMPLATES),
        "openai-80": texts(words.OPENAI_IMAGENET_TEMPLATES),
    }
    assert [len(templates) for templates in sets.values()] == [1, 7, 80]
    rows = [f"{json.dumps(name)}: {json.dumps(templates, indent=0)}" for name, templates in sets.items()]
    (OUT / "templates.json").write_text(lines("{", rows, "}"))


main()
