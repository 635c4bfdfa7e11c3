"""Makes ten optimizer steps of `clip` with transformers' vision tower, open_clip's loss and schedule, and torch.optim.

    venv/bin/python tests/golden/model/make_clip_steps.py

The environment is that of `make_text.py`; builds on `vit/`. Writes `tuning/clip.safetensors`: pixels (times 32) and text vectors of every step, the
adapter and the logit scale before the first one, the losses, and what was trained after the last one. Layer decay is BEiT's: a tower of
L blocks has embeddings at depth 0, block i at i + 1, everything else at L + 1, and a rate times decay^(L + 1 - depth).
"""

import math

import open_clip
import torch
import torch.nn as nn
from common import HERE, Block
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from safetensors.torch import save_file
from transformers import CLIPVisionModelWithProjection

assert open_clip.__version__ == "3.3.0", open_clip.__version__
STEPS, PAIRS, WIDTH, SHARED, LAYERS = 10, 8, 12, 20, 2
RATE, WARMUP, CLIP, WEIGHT_DECAY, LAYER_DECAY = 2e-3, 3, 1.0, 0.1, 0.7
numbers = torch.Generator().manual_seed(41)


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision = CLIPVisionModelWithProjection.from_pretrained(HERE / "vit", attn_implementation="sdpa", dtype=torch.float32)
        # The adapter of the research code: normalised input, blocks, LayerNorm, linear.
        self.adapter = nn.Sequential(Block(WIDTH, 2), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, SHARED))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels, vectors):
        image = self.vision(pixels).image_embeds
        text = self.adapter(nn.functional.normalize(vectors, dim=-1))
        normalise = lambda x: nn.functional.normalize(x, dim=-1)
        return normalise(image), normalise(text), self.logit_scale.exp()


def ours(name):
    """The name of a parameter in our store."""
    return name.removeprefix("vision.")


def depth(name):
    if name.startswith("vision_model.embeddings.") or name.startswith("vision_model.pre_layrnorm."):
        return 0
    if name.startswith("vision_model.encoder.layers."):
        return int(name.split(".")[3]) + 1
    return LAYERS + 1


model = Clip()
with torch.no_grad():
    for _, p in sorted(model.adapter.named_parameters()):
        p.copy_(torch.randn(p.shape, generator=numbers) * (p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2))
begin = {"begin." + ours(name): p.detach().clone() for name, p in model.named_parameters() if not name.startswith("vision.")}
bytes_ = torch.randint(-64, 64, (STEPS, PAIRS, 3, 24, 24), generator=numbers, dtype=torch.int8)
pixels = bytes_.float() / 32  # exact, and a quarter of the file
vectors = torch.randn(STEPS, PAIRS, WIDTH, generator=numbers)

groups = [
    {"params": [p], "weight_decay": WEIGHT_DECAY if p.dim() >= 2 else 0.0, "scale": LAYER_DECAY ** (LAYERS + 1 - depth(ours(name)))}
    for name, p in model.named_parameters()
]
optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), eps=1e-6)
schedule = cosine_lr(optimizer, RATE, WARMUP, STEPS)
loss_of, losses = ClipLoss(), []
for step in range(STEPS):
    schedule(step)
    for group in optimizer.param_groups:
        group["lr"] *= group["scale"]
    optimizer.zero_grad()
    loss = loss_of(*model(pixels[step], vectors[step]))
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))
    losses.append(loss.item())

trained = {"trained." + ours(name): p.detach() for name, p in model.named_parameters()}
case = {"pixels": bytes_, "vectors": vectors, "losses": torch.tensor(losses, dtype=torch.float64), **begin, **trained}
save_file({name: t.contiguous() for name, t in case.items()}, HERE / "tuning/clip.safetensors")
