"""The peer of `llm2clip bench step`: an optimizer step of an open_clip vision tower against fixed text features.

usage: open_clip_step.py MODEL BATCH DEVICE eager|compiled      (open_clip_torch 3.3.0, PyTorch 2.11.0)
bf16 autocast over fp32 weights, fused AdamW, local loss of one rank; prints images a second and the allocator's peak.
"""

import sys
import time

import open_clip
import torch
from open_clip.loss import ClipLoss

model, batch, device, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(0)
whole = open_clip.create_model(model, device=device)
tower, log_scale = whole.visual, whole.logit_scale
trained = [*tower.parameters(), log_scale]
optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)
size = tower.image_size[0] if isinstance(tower.image_size, tuple) else tower.image_size
pixels = torch.randn(batch, 3, size, size, device=device)
run = torch.compile(tower) if mode == "compiled" else tower
loss = ClipLoss()
with torch.no_grad():
    text = torch.nn.functional.normalize(torch.randn(batch, tower(pixels[:1]).shape[-1], device=device), dim=-1)


def step():
    with torch.autocast(device, dtype=torch.bfloat16):
        features = torch.nn.functional.normalize(run(pixels), dim=-1)
        total = loss(features, text, log_scale.exp())
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
