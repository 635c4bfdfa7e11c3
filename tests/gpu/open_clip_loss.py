"""The peer of `llm2clip bench loss`: open_clip's local loss with its gradients, of one rank of several.

usage: open_clip_loss.py PAIRS ROWS WIDTH DEVICE      (open_clip_torch 3.3.0, PyTorch 2.11.0)
The other ranks' features are there already, so no time goes into gathering them; the gradient of the gathered features is
computed, as it is before its reduce-scatter. bf16 autocast; prints milliseconds and the allocator's peak, or that memory was
short.
"""

import sys
import time

import open_clip.loss
import torch

pairs, rows, width, device = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.manual_seed(0)


def features():
    drawn = torch.randn(pairs, width, device=device, dtype=torch.bfloat16)
    return torch.nn.functional.normalize(drawn, dim=-1)


images, texts = features(), features()


def gathered(own_images, own_texts, *arguments, **named):
    return torch.cat([own_images, images[rows:]]), torch.cat([own_texts, texts[rows:]])


open_clip.loss.gather_features = gathered
loss = open_clip.loss.ClipLoss(local_loss=True, gather_with_grad=True, rank=0, world_size=pairs // rows)
scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)


def step():
    own = [part[:rows].detach().requires_grad_() for part in (images, texts)]
    with torch.autocast(device, dtype=torch.bfloat16):
        total = loss(*own, scale)
    total.backward()


def wait():
    if device != "cpu":
        torch.cuda.synchronize()


try:
    step()
    wait()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    began = time.time()
    for _ in range(3):
        step()
    wait()
    peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else float("nan")
    print(f"{(time.time() - began) / 3 * 1e3:.1f} ms, {peak:.2f} GiB")
except torch.OutOfMemoryError as error:
    print(f"out of memory: {str(error).splitlines()[0]}")
