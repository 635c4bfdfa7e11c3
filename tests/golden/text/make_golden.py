#!/usr/bin/env python3
"""Makes the golden blocks of packed text: what run_mntp.py of LLM2CLIP makes of documents' tokens.

    python3 tests/golden/text/make_golden.py

Written with Python 3.11 and nothing else: `group` states the rule of the reference's group_texts under datasets' map(batched=True), whose
batches have 1,000 rows: the tokens of a batch one after the other, cut into blocks, what is left over dropped with the batch.
A token is the pair (document, place), so that every one is told from every other.
"""
import json
import pathlib
import random
from itertools import chain

BLOCK = 512


def group(documents, block, rows):
    blocks = []
    for start in range(0, len(documents), rows):
        tokens = list(chain(*documents[start:start + rows]))
        whole = len(tokens) // block * block
        blocks += [tokens[i:i + block] for i in range(0, whole, block)]
    return blocks


def runs(block):
    """A block as [document, first, last + 1] for each document in it."""
    out = []
    for document, place in block:
        if out and out[-1][0] == document:
            out[-1][2] = place + 1
        else:
            out.append([document, place, place + 1])
    return out


def main():
    rng = random.Random(20241107)
    # As Wikitext: a third of the rows is empty (one token, the tokenizer's own), some are long; one row is several blocks.
    lengths = [1 if rng.random() < 0.33 else rng.randint(2, 300) for _ in range(2345)]
    lengths[7], lengths[1000], lengths[2344] = 0, 1700, 0
    documents = [[(d, i) for i in range(n)] for d, n in enumerate(lengths)]
    golden = {"block": BLOCK, "lengths": lengths, "reference": [runs(b) for b in group(documents, BLOCK, 1000)],
              "whole": [runs(b) for b in group(documents, BLOCK, len(documents))]}
    path = pathlib.Path(__file__).resolve().parent / "packing.json"
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
