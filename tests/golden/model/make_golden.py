"""Makes the reference tensors of the model tests: tiny random networks, their inputs, outputs and every gradient.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==4.57.6 safetensors==0.8.0
    venv/bin/python tests/golden/model/make_golden.py

Writes beside itself `vit/` and `llama/` (model folders as users have them) and one safetensors a case with the inputs,
`output`, `probe` and `grad.NAME` of every parameter. The loss is sum(output * probe). CLIP and the adapter are computed
in fp64 and rounded once; Hugging Face's Llama computes norms and angles in fp32 whatever its kind, so it is run in fp32.
`bf16-errors.json` says how far the same networks are from that when they compute in bf16: ‖found − exact‖ / ‖exact‖ of the
output and of all gradients together.
"""

import torch
import torch.nn as nn
import transformers
from common import HERE, Block, randomise, save_case
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaModel

assert transformers.__version__ == "4.57.6", transformers.__version__


def vision():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 24, 24, generator=generator)
    probe = torch.randn(3, 20, generator=generator)
    for activation in ("gelu", "quick_gelu"):
        config = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8,
            projection_dim=20, hidden_act=activation, attn_implementation="sdpa",
        )
        model = CLIPVisionModelWithProjection(config)
        randomise(model, 2)
        if activation == "quick_gelu":
            model.save_pretrained(HERE / "vit")
        model = model.double()
        forward = lambda m: m(pixels.to(next(m.parameters()).dtype)).image_embeds
        file = f"vit-{activation.replace('_', '-')}.safetensors"
        save_case(file, model, {"pixels": pixels}, forward(model), probe.double(), forward)


def llama():
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, rms_norm_eps=1e-5, rope_theta=100.0, max_position_embeddings=128, attn_implementation="sdpa",
        # So short a first context that one head has kept, interpolated and stretched wavelengths.
        rope_scaling={"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 64},
    )
    model = LlamaModel(config)
    randomise(model, 3)
    model.save_pretrained(HERE / "llama")
    generator = torch.Generator().manual_seed(4)
    lengths, longest = torch.tensor([9, 5, 1]), 9
    keep = torch.arange(longest)[None] >= longest - lengths[:, None]
    ids = torch.where(keep, torch.randint(1, 40, keep.shape, generator=generator), 0)
    # Zero at padding: what stands there means nothing.
    probe = torch.randn(3, longest, 32, generator=generator) * keep[..., None]
    everyone = keep[:, None, None, :].expand(-1, 1, longest, -1) | torch.eye(longest, dtype=torch.bool)
    for name, mask in (("causal", keep.long()), ("bidirectional", everyone)):
        forward = lambda m: m(input_ids=ids, attention_mask=mask).last_hidden_state * keep[..., None]
        save_case(f"llama-{name}.safetensors", model, {"ids": ids, "keep": keep}, forward(model), probe, forward)


def adapter():
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(4, 24, generator=generator)
    probe = torch.randn(4, 20, generator=generator)
    model = nn.Sequential(*[Block(24, 2) for _ in range(4)], nn.LayerNorm(24), nn.Linear(24, 20))
    randomise(model, 6)
    weights = {"weight." + k: v.clone() for k, v in model.state_dict().items()}
    model = model.double()
    x = vectors.double() / vectors.double().norm(dim=-1, keepdim=True)
    forward = lambda m: m(x.to(next(m.parameters()).dtype))
    save_case("adapter.safetensors", model, {"vectors": vectors, **weights}, forward(model), probe.double(), forward)


vision()
llama()
adapter()
