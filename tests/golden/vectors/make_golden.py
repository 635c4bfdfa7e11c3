#!/usr/bin/env python3
"""Makes tars of text vectors as LLM2CLIP's extract_embedding.py writes them, and what has to come out of them.

    python3 tests/golden/vectors/make_golden.py

written with Python 3.11, torch 2.11.0, webdataset 1.0.2, numpy 2.3. The vectors come from a seeded bf16 tensor that is stored as f32, as
the reference's do. webdataset_text_embeddings.tar is made by webdataset's TarWriter (pax headers, the reference's way);
gnu_text_embeddings.tar by tarfile in GNU format, with what goes wrong: a duplicate, a member of no sample, a missing one,
numbers that are no bf16 (halfway cases of both kinds among them), one that is not finite. What has to come out is read
back with webdataset's own reader where it is whole, and rounded by torch.
"""
import io
import json
import pathlib
import tarfile

import torch
import webdataset

HERE = pathlib.Path(__file__).resolve().parent
WIDTH = 6
COLUMNS = ["shortSV_captions", "longSV_captions"]
KEYS = [f"{i:09d}" for i in (0, 1, 2, 5)]


def raw(vector):
    return vector.to(torch.float32).numpy().astype("<f4").tobytes()


def bits(data):
    vector = torch.frombuffer(bytearray(data), dtype=torch.float32).to(torch.bfloat16)
    return [int(x) & 0xFFFF for x in vector.view(torch.int16).tolist()]


def make_webdataset(generator):
    path = HERE / "webdataset_text_embeddings.tar"
    with webdataset.TarWriter(str(path), encoder=False, mtime=1700000000.5) as writer:
        for key in (KEYS[2], KEYS[0], KEYS[3], KEYS[1]):
            vectors = {column: raw(torch.randn(WIDTH, generator=generator).to(torch.bfloat16)) for column in COLUMNS}
            writer.write({"__key__": key, **vectors})
    read = {s["__key__"]: s for s in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)}
    return {column: [bits(read[key][column.lower()]) for key in KEYS] for column in COLUMNS}


def make_gnu(generator):
    """Per column, per key: bits or null."""
    short, long = COLUMNS
    expected = {column: [None] * len(KEYS) for column in COLUMNS}
    with tarfile.open(HERE / "gnu_text_embeddings.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        def add(key, ending, data):
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        def random():
            return raw(torch.randn(WIDTH, generator=generator).to(torch.bfloat16))

        one = random()
        add(KEYS[0], short.lower(), one)
        expected[short][0] = bits(one)
        add(KEYS[0], short, random())  # a duplicate: the first one counts
        add("000000099", short, random())  # of no sample
        # 1 + 2^-8 lies halfway and goes down to even, 1 + 3 * 2^-8 up; the others are rounded to the nearest.
        rounded = raw(torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.1, 2.0, 0.0]))
        add(KEYS[1], long.upper(), rounded)
        expected[long][1] = bits(rounded)
        add(KEYS[2], long, raw(torch.tensor([1.0, float("nan"), 0, 0, 0, 0])))  # not finite: null
        add(KEYS[2], "json", b"{}")  # something else
        add(f"a.b/{KEYS[3]}", long, random())  # in a folder: another key
    return expected


def main():
    generator = torch.Generator().manual_seed(20241107)
    golden = {
        "made_with": {"torch": torch.__version__, "webdataset": webdataset.__version__},
        "width": WIDTH,
        "keys": KEYS,
        "columns": COLUMNS,
        "webdataset": make_webdataset(generator),
        "gnu": make_gnu(generator),
    }
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
