"""Makes order.json: the places of some samples, computed from the description of the order alone (no code shared).

    python3 make_golden.py > order.json

Two data sets of 1,000 and 333 samples, global batch 64, seed 17.
"""

import json

M = (0xD2511F53, 0xCD9E8D57)
W = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


def philox(c, k):
    for r in range(10):
        key = [(k[i] + r * W[i]) & MASK for i in (0, 1)]
        p0, p1 = M[0] * c[0], M[1] * c[2]
        c = [(p1 >> 32) ^ c[1] ^ key[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ key[1], p0 & MASK]
    return c


def derive(seed, purpose, source, epoch):
    return philox([purpose, source, epoch & MASK, epoch >> 32], [seed & MASK, seed >> 32])[:2]


def permute(key, n, x):
    bits = (n - 1).bit_length()
    half = max((bits + 1) // 2, 1)
    while True:
        left, right = x >> half, x & ((1 << half) - 1)
        for r in range(6):
            b = philox([right & MASK, right >> 32, r, 0], key)
            left, right = right, left ^ ((b[0] | b[1] << 32) & ((1 << half) - 1))
        x = left << half | right
        if x < n:
            return x


SIZES, BATCH, SEED = [1000, 333], 64, 17
per_epoch = sum(n // BATCH for n in SIZES)
rows = []
for step in (0, 1, 7, 19, 20, 21, 999):
    for slot in (0, 1, 63):
        epoch = step // per_epoch
        batch = permute(derive(SEED, 2, 0, epoch), per_epoch, step % per_epoch)
        source = 0
        while batch >= SIZES[source] // BATCH:
            batch -= SIZES[source] // BATCH
            source += 1
        index = permute(derive(SEED, 1, source, epoch), SIZES[source], batch * BATCH + slot)
        rows.append([step, slot, source, index, epoch])
print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
