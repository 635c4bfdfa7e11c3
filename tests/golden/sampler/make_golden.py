"""Makes order.json: the places of some samples, computed from the description of the order alone (no code shared).

    python3 make_golden.py > order.json         (Python 3.9 or newer, nothing else; written with 3.11)

Where the program has closed forms, this counts: it goes through the steps one by one from step 0, and looks samples up in
lists of whole epochs.
"""

import json
from fractions import Fraction
from math import gcd

M = (0xD2511F53, 0xCD9E8D57)
W = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
MASK64 = (1 << 64) - 1
ORDER, MIX, RESERVE, SLOTS, BLOCKS, WINDOW = 1, 2, 6, 7, 8, 9


def philox(c, k):
    for r in range(10):
        key = [(k[i] + r * W[i]) & MASK for i in (0, 1)]
        p0, p1 = M[0] * c[0], M[1] * c[2]
        c = [(p1 >> 32) ^ c[1] ^ key[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ key[1], p0 & MASK]
    return c


def split(value):
    return [value & MASK, value >> 32]


def derive(seed, purpose, source, epoch):
    return philox([purpose, source] + split(epoch), split(seed))[:2]


def murmur(x):
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK64
    return x ^ x >> 31


def permute(key, n, x, part=0):
    """Where position x of 0..n goes: three double rounds on ceil(bits/2) upper and floor(bits/2) lower bits, four times
    over with other keys where there are at most 8 bits."""
    bits = (n - 1).bit_length()
    low_bits = bits // 2
    keys = []
    for number in range(3):
        b = philox([number, 0] + split(part), key)
        keys += [b[0] | b[1] << 32, b[2] | b[3] << 32]
    while True:
        high, low = x >> low_bits, x % (1 << low_bits)
        for p in range(4 if bits <= 8 else 1):
            for r in (0, 2, 4):
                k, l = ((keys[i] + p * 0x9E3779B97F4A7C15) & MASK64 for i in (r, r + 1))
                high ^= murmur(low ^ k) % (1 << (bits - low_bits))
                low ^= murmur(high ^ l) % (1 << low_bits)
        x = high << low_bits | low
        if x < n:
            return x


def epoch_order(seed, source, epoch, n, shuffle):
    """All samples of a data set in the order of an epoch."""
    if shuffle == "full":
        key = derive(seed, ORDER, source, epoch)
        return [permute(key, n, i) for i in range(n)]
    b, m = shuffle["block"], shuffle["window"]
    blocks = [list(range(i, min(i + b, n))) for i in range(0, n, b)]
    key = derive(seed, BLOCKS, source, epoch)
    row = [x for i in range(len(blocks)) for x in blocks[permute(key, len(blocks), i)]]
    key = derive(seed, WINDOW, source, epoch)
    windows = max(n // m, 1)
    order = []
    for w in range(windows):
        part = row[w * m : (w + 1) * m if w + 1 < windows else n]
        order += [part[permute(key, len(part), i, w)] for i in range(len(part))]
    return order


def apportion(sizes, seats):
    exact = [Fraction(n * seats, sum(sizes)) for n in sizes]
    shares = [int(x) for x in exact]
    for i in sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])[: seats - sum(shares)]:
        shares[i] += 1
    return shares


class Order:
    def __init__(self, case):
        self.case = case
        self.cache = {}
        self.batches = []  # per step, per slot: (source, index, epoch)
        self.starts = []  # per segment
        self.run()

    def sample(self, source, epoch, place):
        n, shuffle = self.case["sources"][source]
        key = (source, epoch)
        if key not in self.cache:
            self.cache[key] = epoch_order(self.case["seed"], source, epoch, n, shuffle)
        return self.cache[key][place]

    def composition(self, weights):
        """Per data set the units of a period, the period in steps, and the length of an aligned epoch."""
        g, tail, policy = self.case["global_batch"], self.case["tail"], self.case["policy"]
        sizes = [n for n, _ in self.case["sources"]]
        if weights is None and tail == "drop" and policy == "mixed":
            steps = sum(sizes) // g
            units = apportion(sizes, steps * g)
            return units, steps, units
        if weights is None:
            weights = [n // g for n in sizes] if (tail, policy) == ("drop", "one-source") else sizes
        units = 1 if policy == "one-source" else g
        d = gcd(*weights)
        weights = [w // d for w in weights]
        c = gcd(sum(weights), units)
        return [w * units // c for w in weights], sum(weights) // c, None

    def run(self):
        case = self.case
        g, tail, policy, seed = case["global_batch"], case["tail"], case["policy"], case["seed"]
        sizes = [n for n, _ in case["sources"]]
        unit = g if policy == "one-source" else 1
        stands = [(0, 0)] * len(sizes)  # epoch, place
        for number, (first, weights) in enumerate(case["segments"]):
            end = case["segments"][number + 1][0] if number + 1 < len(case["segments"]) else case["steps"]
            self.starts.append([e * n + p for (e, p), n in zip(stands, sizes)])
            units, period, aligned = self.composition(weights)
            pace = period * 0x9E3779B97F4A7C15 >> 64
            while gcd(pace, period) != 1:
                pace += 1
            phase = below(derive(seed, MIX, 0, 0), period)
            most = [-(-u // period) * unit for u in units]
            lengths = []
            for n, m, i in zip(sizes, most, range(len(sizes))):
                if m == 0 or tail == "carry":
                    lengths.append(n)
                elif policy == "one-source":
                    lengths.append(n // g * g)
                else:
                    lengths.append(aligned[i] if aligned and number == 0 else n - m + 1)
            stands = [(e, p) if p < l else (e + 1, 0) for (e, p), l in zip(stands, lengths)]
            for step in range(first, end):
                comb = ((step - first) * pace + phase) % period
                rows, line = [], 0
                for source, u in enumerate(units):
                    extra = u % period
                    # How many teeth, at multiples of the period, (comb + line, comb + line + extra] holds.
                    teeth = (comb + line + extra) // period - (comb + line) // period
                    line += extra
                    count = (u // period + teeth) * unit
                    epoch, place = stands[source]
                    for _ in range(count):
                        e, p = (epoch, place) if place < sizes[source] else (epoch + 1, place - sizes[source])
                        rows.append((source, self.sample(source, e, p), e))
                        place += 1
                    if place >= lengths[source]:
                        epoch, place = epoch + 1, place - lengths[source]
                    stands[source] = (epoch, place)
                assert len(rows) == g, (step, len(rows))
                if policy == "mixed":
                    key = derive(seed, SLOTS, 0, step)
                    rows = [rows[permute(key, g, slot)] for slot in range(g)]
                self.batches.append(rows)

    def repeats(self, step):
        seen, found = {}, []
        for slot, (source, index, _) in enumerate(self.batches[step]):
            if (source, index) in seen:
                found.append([step, slot, seen[(source, index)]])
            else:
                seen[(source, index)] = slot
        return found

    def reserve(self, source, epoch, index, attempt):
        n = self.case["sources"][source][0]
        key = derive(self.case["seed"], RESERVE, source, epoch)
        order = [permute(key, n, i) for i in range(n)]
        return order[(order.index(index) + 1 + attempt) % n]


def below(key, bound):
    """The first number of the stream of sample 0 that is below the last whole run of `bound`, modulo `bound`."""
    words = [w for block in range(8) for w in philox([0, 0, block, 0], key)]
    whole = MASK64 - ((MASK64 % bound + 1) % bound)
    return next(x for x in (words[i] | words[i + 1] << 32 for i in range(0, 32, 2)) if x <= whole) % bound


BLOCK = {"block": 8, "window": 100}
CASES = [
    dict(name="one data set, as the demo has it", policy="one-source", tail="drop", sources=[[3015, "full"]],
         global_batch=128, segments=[[0, None]]),
    dict(name="one set a batch, no weights", policy="one-source", tail="drop", sources=[[1000, "full"], [333, "full"]],
         global_batch=64, segments=[[0, None]]),
    dict(name="mixed, no weights", policy="mixed", tail="drop", sources=[[1000, "full"], [333, BLOCK], [77, "full"]],
         global_batch=64, segments=[[0, None]]),
    dict(name="blocks with a short end", policy="one-source", tail="drop", sources=[[1021, BLOCK]], global_batch=32,
         segments=[[0, None]]),
    dict(name="weights of batches, carried", policy="one-source", tail="carry", sources=[[301, "full"], [133, BLOCK]],
         global_batch=64, segments=[[0, [3, 2]]]),
    dict(name="weights of samples that change twice", policy="mixed", tail="carry",
         sources=[[301, "full"], [133, BLOCK], [97, "full"]], global_batch=64,
         segments=[[0, [5, 2, 1]], [13, [1, 1, 1]], [41, None]]),
    dict(name="weights that change, the tail dropped", policy="mixed", tail="drop",
         sources=[[301, "full"], [133, BLOCK], [97, "full"]], global_batch=64,
         segments=[[0, None], [13, [1, 1, 1]], [41, [0, 1, 2]]]),
]

documents = []
for case in CASES:
    case = dict(case, seed=(1 << 40) + 17, steps=120)
    order = Order(case)
    steps = [0, 1, 7, 12, 13, 14, 15, 16, 20, 21, 40, 41, 42, 119]
    case["draws"] = [
        [step, slot, *order.batches[step][slot]] for step in steps for slot in (0, 1, 31, case["global_batch"] - 1)
    ]
    case["repeats"] = [row for step in range(120) for row in order.repeats(step)][:20]
    case["starts"] = order.starts
    last = len(case["sources"]) - 1
    case["reserves"] = [[last, e, i, a, order.reserve(last, e, i, a)] for e, i, a in ((0, 0, 0), (3, 76, 1), (9, 5, 15))]
    case["segments"] = [dict(first=first, weights=weights) for first, weights in case["segments"]]
    documents.append(case)


def line(case):
    rows = {key: json.dumps(case[key]) for key in case}
    return "{" + ",\n ".join(f'"{key}": {value}' for key, value in rows.items()) + "}"


print("[" + ",\n".join(line(case) for case in documents) + "]")
