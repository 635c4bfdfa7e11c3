"""Makes the reference tensors of LoRAs beside EVA02 (timm) and SigLIP (transformers) towers, as peft computes them.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==4.57.6 timm==1.0.31 peft==0.21.2 safetensors==0.8.0
    venv/bin/python tests/golden/model/make_vision_lora.py

Builds on `eva02/` and `siglip/` of `make_vision.py`. A case holds what the others hold and `weight.NAME` of each update. The
networks are computed in fp64 and rounded once.
"""

import peft
import torch
from common import HERE, save_case, trained
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from timm.models.eva import Eva
from transformers import SiglipVisionModel

assert peft.__version__ == "0.21.2", peft.__version__


def case(name, base, seed, targets, output):
    inputs = load_file(HERE / {"lora-eva02": "eva02.safetensors", "lora-siglip": "siglip-gelu.safetensors"}[name])
    pixels, probe = inputs["pixels"], inputs["probe"]
    # The tests' own settings.
    model = get_peft_model(base, LoraConfig(target_modules=targets, r=4, lora_alpha=8, lora_dropout=0.0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in trained(model):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5 * p.shape[-1] ** -0.5)
    weights = {"weight." + name: p.detach().clone() for name, p in trained(model)}
    model = model.double().eval()
    forward = lambda m: output(m(pixels.to(next(m.parameters()).dtype)))
    save_case(f"{name}.safetensors", model, {"pixels": pixels, **weights}, forward(model), probe.double(), forward)


def eva02():
    model = Eva(
        img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=20, qkv_fused=False, mlp_ratio=8 / 3,
        swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16),
        global_pool="token",
    )
    weights = load_file(HERE / "eva02" / "model.safetensors")
    model.load_state_dict({name.removeprefix("visual.trunk."): tensor for name, tensor in weights.items()})
    targets = r"blocks\.\d+\.(attn\.(q_proj|k_proj|v_proj|proj)|mlp\.(fc1_g|fc1_x|fc2))"
    case("lora-eva02", model, 31, targets, lambda output: output)


def siglip():
    # `siglip/` has erf-GELU.
    model = SiglipVisionModel.from_pretrained(HERE / "siglip", attn_implementation="sdpa")
    targets = ["q_proj", "k_proj", "v_proj", "fc1", "fc2"]
    case("lora-siglip", model, 32, targets, lambda output: output.pooler_output)


eva02()
siglip()
