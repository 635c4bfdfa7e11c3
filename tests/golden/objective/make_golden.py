"""Makes the reference tensors of stage 2's losses from torch and open_clip, in fp64.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 open_clip_torch==3.3.0 safetensors==0.8.0
    venv/bin/python tests/golden/objective/make_golden.py

Writes one safetensors a case beside itself: normalised rows `image` and `text`, `log_scale`, `bias` where there is one, `loss`,
and `grad.NAME` of each of them.
"""

import pathlib

import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
assert torch.__version__.startswith("2.11."), torch.__version__
assert open_clip.__version__ == "3.3.0", open_clip.__version__
torch.set_num_threads(1)
PAIRS, WIDTH = 13, 6


def case(file, seed, scalars, loss_of):
    generator = torch.Generator().manual_seed(seed)
    rows = lambda: F.normalize(torch.randn(PAIRS, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
    leaves = {"image": rows(), "text": rows()}
    leaves.update({name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()})
    for leaf in leaves.values():
        leaf.requires_grad_()
    loss = loss_of(**leaves)
    loss.backward()
    tensors = {name: leaf.detach() for name, leaf in leaves.items()} | {"loss": loss.detach()}
    save_file(tensors | {"grad." + name: leaf.grad for name, leaf in leaves.items()}, HERE / file)


def softmax(smoothing):
    def loss_of(image, text, log_scale):
        logits = log_scale.exp() * image @ text.T
        labels = torch.arange(PAIRS)
        one_way = lambda logits: F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return (one_way(logits) + one_way(logits.T)) / 2

    return loss_of


def sigmoid(image, text, log_scale, bias):
    return SigLipLoss()(image, text, log_scale.exp(), bias)


case("softmax.safetensors", 1, {"log_scale": 2.6592}, softmax(0.0))
case("softmax-smoothed.safetensors", 2, {"log_scale": 2.6592}, softmax(0.1))
case("sigmoid.safetensors", 3, {"log_scale": 2.302585, "bias": -10.0}, sigmoid)
