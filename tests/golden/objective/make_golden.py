"""Makes the reference tensors of stage 2's losses and of averages of weights from torch, open_clip and timm, in fp64.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 open_clip_torch==3.3.0 timm==1.0.31 safetensors==0.8.0
    venv/bin/python tests/golden/objective/make_golden.py

Writes one safetensors a case beside itself: normalised rows `image` and `text`, `log_scale`, `bias` where there is one, `loss`,
and `grad.NAME` of each of them. `ema.safetensors` has a start, gradients, and the averages of `torch` and `timm`.
"""

import pathlib

import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from safetensors.torch import save_file
from timm.utils import ModelEmaV2
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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


def ema():
    """Ten steps of AdamW with given gradients, and the average of torch and of timm over them from the start on."""
    generator = torch.Generator().manual_seed(4)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    start, gradients = {"w": normal(3, 5), "b": normal(5)}, {"w": normal(10, 3, 5), "b": normal(10, 5)}
    model = torch.nn.Module()
    for name, value in start.items():
        model.register_parameter(name, torch.nn.Parameter(value.clone()))
    optimizer = torch.optim.AdamW(
        [{"params": [model.w], "weight_decay": 0.1}, {"params": [model.b], "weight_decay": 0.0}], lr=0.05, betas=(0.9, 0.98),
        eps=1e-6,
    )
    by_torch = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    by_torch.update_parameters(model)  # its first call takes the parameters as they are
    by_timm = ModelEmaV2(model, decay=0.9)
    for step in range(10):
        model.w.grad, model.b.grad = gradients["w"][step], gradients["b"][step]
        optimizer.step()
        by_torch.update_parameters(model)
        by_timm.update(model)
    tensors = {"start." + name: value for name, value in start.items()}
    tensors |= {"gradients." + name: value for name, value in gradients.items()}
    for name, averaged in (("torch", by_torch.module), ("timm", by_timm.module)):
        tensors |= {f"{name}.{parameter}": value.detach() for parameter, value in averaged.named_parameters()}
    save_file(tensors, HERE / "ema.safetensors")


def distillation():
    """The sums of ProCLIP's public code, over the rows of one device."""
    generator = torch.Generator().manual_seed(6)
    rows = lambda: F.normalize(torch.randn(PAIRS, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
    student, teacher = rows().requires_grad_(), rows()
    loss = F.mse_loss(student, teacher, reduction="sum")
    loss = loss + F.smooth_l1_loss(F.pdist(student, p=2), F.pdist(teacher, p=2), reduction="sum")
    loss.backward()
    tensors = {"student": student.detach(), "teacher": teacher, "loss": loss.detach(), "grad.student": student.grad}
    save_file(tensors, HERE / "distillation.safetensors")


ema()
distillation()
