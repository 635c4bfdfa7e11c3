"""Loads an export in transformers, open_clip and peft, and compares features with the reference vectors that `encode` wrote.

    llm2clip encode --model EXPORT --golden write GOLDEN.safetensors
    PYTHON tests/python/round_trip.py EXPORT GOLDEN.safetensors

PYTHON has the libraries of deploy/setup/fetch_peers.py. The images of the reference file go through each library's own
transform, the LLM's vectors through the adapter. A weight that a library does not know, or misses, is an error here.
"""

import json
import pathlib
import sys
import warnings

import torch
from PIL import Image
from safetensors import safe_open

EXPORT, GOLDEN = map(pathlib.Path, sys.argv[1:])
# Of a normalised feature: fp32 sums in another order, and a processor that rescales bytes in another order.
TOLERANCE = 2e-4
torch.set_num_threads(1)
torch.set_grad_enabled(False)

with safe_open(GOLDEN, "pt") as file:
    tensors = {name: file.get_tensor(name) for name in file.keys()}
images = [Image.fromarray(tensors[f"pixels.{k}"].numpy()) for k in range(2)]
description = json.loads((EXPORT / "llm2clip.json").read_text())


def compare(name, found, expected):
    found = torch.nn.functional.normalize(found, dim=-1)
    apart = (found - expected).abs().max().item()
    print(f"{name}: largest difference {apart:.1e}")
    assert apart < TOLERANCE, name


def with_transformers():
    from transformers import AutoModel, CLIPImageProcessor

    model, info = AutoModel.from_pretrained(EXPORT, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    model.eval()
    processor = CLIPImageProcessor.from_pretrained(EXPORT)
    pixels = processor(images=images, return_tensors="pt").pixel_values
    compare("transformers, images", model.get_image_features(pixels), tensors["image"])
    compare("transformers, texts", model.get_text_features(tensors["vectors"]), tensors["text"])
    cosines = tensors["image"] @ tensors["text"].T
    scores = model(pixels, tensors["vectors"]) / description["logit_scale"]
    assert (scores - cosines).abs().max().item() < TOLERANCE


def with_siglip():
    from transformers import CLIPImageProcessor, SiglipVisionModel

    model, info = SiglipVisionModel.from_pretrained(EXPORT, output_loading_info=True)
    beside = [name for name in info["unexpected_keys"] if not name.startswith(("text_adapter.", "logit_scale"))]
    assert not info["missing_keys"] and not beside, info
    pixels = CLIPImageProcessor.from_pretrained(EXPORT)(images=images, return_tensors="pt").pixel_values
    compare("transformers, images", model.eval()(pixels).pooler_output, tensors["image"])


def with_open_clip():
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{EXPORT / 'open_clip'}")
    pixels = torch.stack([transform(image) for image in images])
    compare("open_clip, images", model.eval().encode_image(pixels), tensors["image"])


def with_peft():
    """LoRAs fit the LLM, name by name. What they compute is compared in tests/golden/model/check_peft.py."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModel

    warnings.simplefilter("error", UserWarning)  # peft only warns about missing keys
    model = AutoModel.from_config(AutoConfig.from_pretrained(EXPORT / description["text"]["model"]))
    for place in description["text"]["adapters"]:
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        model = PeftModel.from_pretrained(model, EXPORT / place).merge_and_unload()
        moved = [name for name, weight in model.state_dict().items() if not weight.equal(before[name])]
        print(f"peft, {place}: {len(moved)} of {len(before)} weights moved")
        assert moved, place


def with_peft_beside_vision():
    """The vision tower's LoRA on the tower that it was trained beside makes the features of the merged weights."""
    from peft import PeftModel
    from transformers import AutoModel, CLIPImageProcessor

    warnings.simplefilter("error", UserWarning)
    base = json.loads((EXPORT / "vision_lora/adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModel.from_pretrained(base, trust_remote_code=True).eval()
    pixels = CLIPImageProcessor.from_pretrained(EXPORT)(images=images, return_tensors="pt").pixel_values
    before = torch.nn.functional.normalize(model.get_image_features(pixels), dim=-1)
    assert (before - tensors["image"]).abs().max().item() > 10 * TOLERANCE, "the LoRA changes nothing"
    model = PeftModel.from_pretrained(model, EXPORT / "vision_lora").eval()
    compare("peft, images", model.get_image_features(pixels), tensors["image"])


done = []
if description["image"]["architecture"] == "clip":
    with_transformers()
    done.append("transformers")
if description["image"]["architecture"] == "siglip":
    with_siglip()
    done.append("transformers")
if (EXPORT / "open_clip").is_dir():
    with_open_clip()
    done.append("open_clip")
if description["text"]["adapters"]:
    with_peft()
    done.append("peft")
if (EXPORT / "vision_lora").is_dir():
    with_peft_beside_vision()
    done.append("peft beside the vision tower")
assert done, "nothing was compared: neither transformers nor open_clip has such a tower"
print("the same in", " and ".join(done))
