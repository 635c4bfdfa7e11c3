#!/usr/bin/env python3
"""Makes shards as others write them, and golden.json: what Python's tarfile, pyarrow and csv read in them.

Run in an environment with these versions, in this folder:
    pip install webdataset==1.0.2 pyarrow==26.0.1
    python make_golden.py

pax.tar is img2dataset's layout: webdataset's writer with times that are no whole seconds, so that every member has a pax
header; gnu.tar has names beyond 100 bytes in GNU's form and a size in base 256; global.tar begins with a global pax header,
as `git archive` writes it; apart.tar has the members of its samples far from each other. images.parquet is Hugging Face's
layout in row groups of two rows, table.parquet and table.csv are one caption table.
"""
import csv
import io
import json
import pathlib
import tarfile

import pyarrow
import pyarrow.parquet
import webdataset

HERE = pathlib.Path(__file__).parent
BODIES = [bytes((i * 31 + j * 7) % 256 for j in range(n)) for i, n in enumerate((1, 511, 512, 513, 1500))]
TEXTS = ["plain", "two\nlines, and a \"quote\"", "grüße 你好", "a, b", "x" * 300]


def add(tar, name, data, size_base256=False):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    if not size_base256:
        tar.addfile(info, io.BytesIO(data))
        return
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + len(data).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    tar.fileobj.write(bytes(header) + data + bytes(-len(data) % 512))
    tar.offset += 512 + len(data) + (-len(data) % 512)


def tars():
    with webdataset.TarWriter(str(HERE / "pax.tar"), mtime=1700000000.25) as writer:
        for i, (body, text) in enumerate(zip(BODIES, TEXTS)):
            writer.write({"__key__": f"{i:09d}", "jpg": body, "txt": text, "json": json.dumps({"url": f"http://x/{i}"})})
    with tarfile.open(HERE / "gnu.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for i, (body, text) in enumerate(zip(BODIES, TEXTS)):
            folder = "long/" * (10 * i)
            add(tar, f"{folder}{i}.jpg", body, size_base256=i == 0)
            add(tar, f"{folder}{i}.txt", text.encode())
    with tarfile.open(HERE / "global.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a commit"}) as tar:
        for i, body in enumerate(BODIES):
            add(tar, f"ü{i}.png", body)
    with tarfile.open(HERE / "apart.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, text in enumerate(TEXTS):
            add(tar, f"./{'p' * 90}/{i}.txt", text.encode())
        for i, body in enumerate(BODIES):
            add(tar, f"./{'p' * 90}/{4 - i}.JPG", body)
    listing = {}
    for path in sorted(HERE.glob("*.tar")):
        with tarfile.open(path) as tar:
            listing[path.name] = [[m.name, m.offset_data, m.size] for m in tar if m.isfile()]
    return listing


def tables():
    bytes_or_null = [None if i == 3 else body for i, body in enumerate(BODIES)]
    images = [None if b is None else {"bytes": b, "path": f"{i}.jpg"} for i, b in enumerate(bytes_or_null)]
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(images, struct), "caption": pyarrow.array(TEXTS)}
    pyarrow.parquet.write_table(pyarrow.table(columns), HERE / "images.parquet", row_group_size=2)
    rows = [[f"http://x/{i}", text, text.upper()] for i, text in enumerate(TEXTS)]
    with open(HERE / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["Image Path", "raw_caption", "longSV_captions"], *rows])
    names = ["url", "re_caption", "org_caption"]
    table = pyarrow.table({name: pyarrow.array(column) for name, column in zip(names, zip(*rows))})
    pyarrow.parquet.write_table(table, HERE / "table.parquet")
    return rows


golden = {"tars": tars(), "rows": tables(), "bodies": [list(body) for body in BODIES]}
(HERE / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
