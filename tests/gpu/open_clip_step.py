"""The peer of `llm2clip bench step --text-width 4096`: an optimizer step of an open_clip vision tower and LLM2CLIP's adapter.

usage: open_clip_step.py MODEL BATCH DEVICE eager|compiled      (open_clip_torch 3.3.0, PyTorch 2.11.0)
bf16 autocast over fp32 weights, fused AdamW, local loss of one rank; prints images a second and the allocator's peak.
"""

import sys
import time

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import nn

WIDTH, BLOCKS = 4096, 4
model, batch, device, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fn = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x):
        return x + self.fn(x)


class Towers(nn.Module):
    """The vision tower and the adapter: what LLM2CLIP trains."""

    def __init__(self):
        super().__init__()
        # Made on the CPU, as only the tower of it is kept.
        self.tower = open_clip.create_model(model).visual
        self.size = self.tower.image_size[0] if isinstance(self.tower.image_size, tuple) else self.tower.image_size
        with torch.no_grad():
            width = self.tower.eval()(torch.zeros(1, 3, self.size, self.size)).shape[-1]
        self.tower.train()
        self.adapter = nn.Sequential(*(Block() for _ in range(BLOCKS)), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, width))

    def forward(self, pixels, text):
        normalise = nn.functional.normalize
        return normalise(self.tower(pixels), dim=-1), normalise(self.adapter(normalise(text, dim=-1)), dim=-1)


towers = Towers().to(device)
log_scale = nn.Parameter(torch.tensor(1 / 0.07, device=device).log())
trained = [*towers.parameters(), log_scale]
optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)
pixels = torch.randn(batch, 3, towers.size, towers.size, device=device)
text = torch.randn(batch, WIDTH, device=device)
run = torch.compile(towers) if mode == "compiled" else towers
loss = ClipLoss()


def step():
    with torch.autocast(device, dtype=torch.bfloat16):
        total = loss(*run(pixels, text), log_scale.exp())
    optimizer.zero_grad()
    total.backward()
    optimizer.step()


def wait():
    if device != "cpu":
        torch.cuda.synchronize()


for _ in range(3):
    step()
wait()
began, steps = time.time(), 10 if device != "cpu" else 2
for _ in range(steps):
    step()
wait()
peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else float("nan")
print(f"{batch * steps / (time.time() - began):.1f} images/s, {peak:.1f} GiB")
