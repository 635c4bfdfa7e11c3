"""Makes the reference tensors of EVA02, SigLIP and resized tables from timm, transformers and torch.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==4.57.6 timm==1.0.31 safetensors==0.8.0
    venv/bin/python tests/golden/model/make_vision.py

Writes model folders as users have them (`eva02/`, `siglip/`, `siglip-timm/`), a case each as `make_golden.py` does, and
`resize.safetensors`. The networks are computed in fp64 and rounded once.
"""

import json

import timm
import torch
import torch.nn.functional as F
import transformers
from common import HERE, randomise, rounded, save_case
from safetensors.torch import save_file
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from transformers import SiglipVisionConfig, SiglipVisionModel

assert timm.__version__ == "1.0.31", timm.__version__
assert transformers.__version__ == "4.57.6", transformers.__version__


def inputs(seed, width):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 3, 24, 24, generator=generator), torch.randn(3, width, generator=generator)


def write_folder(name, config, tensors):
    (HERE / name).mkdir(exist_ok=True)
    (HERE / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(rounded(tensors), HERE / name / "model.safetensors")


def eva02():
    # 32 * 8/3 = 85.3: as in the large tower, no multiple of 8.
    model = Eva(
        img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=20, qkv_fused=False, mlp_ratio=8 / 3,
        swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16),
        global_pool="token",
    )
    randomise(model, 12)
    config = dict(
        model_type="eva02_clip", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8,
        projection_dim=20,
    )
    write_folder("eva02", config, {"visual.trunk." + k: v for k, v in model.state_dict().items()})
    model = model.double().eval()
    pixels, probe = inputs(11, 20)
    forward = lambda m: m(pixels.to(next(m.parameters()).dtype))
    save_case("eva02.safetensors", model, {"pixels": pixels}, forward(model), probe.double(), forward)


def siglip():
    pixels, probe = inputs(13, 32)
    for activation in ("gelu", "gelu_pytorch_tanh"):
        config = SiglipVisionConfig(
            hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8,
            hidden_act=activation, attn_implementation="sdpa",
        )
        model = SiglipVisionModel(config)
        randomise(model, 14)
        if activation == "gelu":
            model.save_pretrained(HERE / "siglip")
        model = model.double().eval()
        forward = lambda m: m(pixels.to(next(m.parameters()).dtype)).pooler_output
        file = "siglip-gelu.safetensors" if activation == "gelu" else "siglip-gelu-tanh.safetensors"
        save_case(file, model, {"pixels": pixels}, forward(model), probe.double(), forward)


def siglip_timm():
    model = VisionTransformer(
        img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=1.75, class_token=False, global_pool="map",
        num_classes=0,
    )
    randomise(model, 15)
    config = dict(
        model_type="siglip_vision_model", hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2,
        image_size=24, patch_size=8, hidden_act="gelu", layer_norm_eps=1e-6,
    )
    write_folder("siglip-timm", config, {"visual.trunk." + k: v for k, v in model.state_dict().items()})
    model = model.double().eval()
    pixels, _ = inputs(16, 32)
    with torch.no_grad():
        save_file(rounded({"pixels": pixels, "output": model(pixels.double())}), HERE / "siglip-timm.safetensors")


def resize():
    """Bicubic in fp32, as eva_clip's `resize_clip_pos_embed` (corners aligned) and `resize_evaclip_pos_embed` (not)."""
    generator = torch.Generator().manual_seed(17)
    table, kernel = torch.randn(1 + 9, 8, generator=generator), torch.randn(8, 3, 8, 8, generator=generator)
    tensors = {"table": table, "kernel": kernel}
    for side in (2, 5):
        for corners in (True, False):
            grid = table[1:].reshape(1, 3, 3, 8).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=corners)
            grid = grid.permute(0, 2, 3, 1).reshape(side * side, 8)
            tensors[f"table.{side}.{'aligned' if corners else 'centred'}"] = torch.cat([table[:1], grid])
    for side in (4, 10):
        tensors[f"kernel.{side}"] = F.interpolate(kernel, size=(side, side), mode="bicubic", align_corners=False)
    save_file(rounded(tensors), HERE / "resize.safetensors")


eva02()
siglip()
siglip_timm()
resize()
