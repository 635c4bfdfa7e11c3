"""A cable that loses, delays, doubles and reorders packets, for kernels without `sch_netem`.

    cable.py FIRST SECOND

makes two TAP devices of these names in the network namespace that it is started in, says `ready` when they are there, and passes
Ethernet frames on between them until its standard input ends. They may be moved to other namespaces: a device stays with whoever
opened it. A line on standard input is the weather from then on, a JSON document with any of

    {"seed": 1, "delay_ms": [500, 500], "jitter_ms": 20, "loss": [0.05, 0.05], "duplicate": 0.01}

`delay_ms` and `loss` are from the first device to the second and back; each frame is late by up to `jitter_ms` more, so that one may
overtake another. What is not named is none. Python's standard library alone.
"""

import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LONGEST_FRAME = 65_600
# What a cable holds at most, as a router's queue does: beyond it frames are lost.
HELD = 20_000


def tap(name):
    """A new TAP device."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


class Cable:
    """Both ends, and the frames between them."""

    def __init__(self, ends):
        self.ends = ends
        self.under_way = []
        self.number = 0
        self.set({})

    def set(self, weather):
        """Takes over what the weather is from now on."""
        self.random = random.Random(weather.get("seed", 0))
        self.delay = [each / 1000 for each in weather.get("delay_ms", [0, 0])]
        self.jitter = weather.get("jitter_ms", 0) / 1000
        self.loss = weather.get("loss", [0, 0])
        self.duplicate = weather.get("duplicate", 0)

    def take(self, end):
        """Reads all frames that came to an end."""
        while True:
            try:
                frame = os.read(self.ends[end], LONGEST_FRAME)
            except BlockingIOError:
                return
            except OSError:  # The device is down.
                return
            copies = 2 if self.random.random() < self.duplicate else 1
            for _ in range(copies):
                lost = self.random.random() < self.loss[end]
                late = self.delay[end] + self.random.random() * self.jitter
                if not lost and len(self.under_way) < HELD:
                    self.number += 1
                    heapq.heappush(self.under_way, (time.monotonic() + late, self.number, 1 - end, frame))

    def deliver(self):
        """Hands over what is due; seconds until the next frame is."""
        while self.under_way:
            wait = self.under_way[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, _, end, frame = heapq.heappop(self.under_way)
            try:
                os.write(self.ends[end], frame)
            except OSError:  # The device is down: the frame is lost.
                pass
        return None


def main(names):
    """Passes frames on until standard input ends."""
    cable = Cable([tap(name) for name in names])
    os.set_blocking(0, False)
    said = b""
    events = selectors.DefaultSelector()
    for end in (0, 1):
        events.register(cable.ends[end], selectors.EVENT_READ, end)
    events.register(0, selectors.EVENT_READ, None)
    print("ready", flush=True)
    while True:
        for key, _ in events.select(cable.deliver()):
            if key.data is not None:
                cable.take(key.data)
                continue
            new = os.read(0, 4096)
            if not new:
                return
            *lines, said = (said + new).split(b"\n")
            for line in lines:
                cable.set(json.loads(line))


if __name__ == "__main__":
    main(sys.argv[1:])
