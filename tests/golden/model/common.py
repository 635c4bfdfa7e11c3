"""What the scripts that make reference tensors share: random weights, cases with every gradient, errors in bf16."""

import copy
import json
import pathlib

import torch
import torch.nn as nn
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
assert torch.__version__.startswith("2.11."), torch.__version__
torch.set_num_threads(1)


def randomise(model, seed):
    """Every parameter random, norms and biases too: a gradient that is wrong anywhere shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            is_norm = p.dim() == 1 and name.endswith("weight")
            p.copy_(1 + 0.2 * noise if is_norm else noise * (p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2))


def rounded(tensors):
    return {k: (v.float() if v.is_floating_point() else v).detach().contiguous() for k, v in tensors.items()}


def trained(model):
    return [(name, p) for name, p in sorted(model.named_parameters()) if p.requires_grad]


def bf16_errors(file, exact, forward, probe):
    """`exact` has its gradients; `forward(model)` gives the output of a bf16 copy."""
    model = copy.deepcopy(exact).bfloat16()
    for (_, there), (_, here) in zip(exact.named_buffers(), model.named_buffers()):
        if there.is_floating_point():
            here.data = there.data.float()  # rotary frequencies stay fp32
    model.zero_grad()
    output = forward(model)
    (output * probe.to(output.dtype)).sum().backward()
    flat = lambda m: torch.cat([p.grad.double().flatten() for _, p in trained(m)])
    error = lambda found, expected: ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    path = HERE / "bf16-errors.json"
    errors = json.loads(path.read_text()) if path.exists() else {}
    errors[file.removesuffix(".safetensors")] = {
        "output": error(output, forward(exact)),
        "gradients": error(flat(model), flat(exact)),
    }
    path.write_text(json.dumps(errors, indent=2) + "\n")


def save_case(file, model, inputs, output, probe, forward):
    """Writes inputs, output, probe and the gradients of sum(output * probe)."""
    model.zero_grad()
    (output * probe).sum().backward()
    tensors = dict(inputs, output=output, probe=probe)
    for name, p in trained(model):
        assert p.grad is not None and p.grad.isfinite().all(), name
        tensors["grad." + name] = p.grad
    save_file(rounded(tensors), HERE / file)
    bf16_errors(file, model, forward, probe)


class Block(nn.Module):
    """A residual block of the research code's adapter."""

    def __init__(self, width, expansion):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.fn = nn.Sequential(nn.Linear(width, width * expansion), nn.GELU(), nn.Dropout(0.0), nn.Linear(width * expansion, width))

    def forward(self, x):
        return x + self.fn(self.ln(x))
