"""Makes files of `torch.save`: a CLIP tower under OpenAI's names, tensors of many kinds, and pickles that must be refused.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 safetensors==0.8.0
    venv/bin/python tests/golden/model/make_golden.py && venv/bin/python tests/golden/model/make_torch_files.py

Writes `clip-openai/` (the tower of `vit/` as eva_clip's training saves it) and `torch-files/`.
"""

import collections
import os

import torch
from common import HERE, rounded
from safetensors.torch import load_file, save_file


def openai_names():
    """Hugging Face's names as OpenAI's; q, k and v are one matrix, and the projection has inputs before outputs."""
    theirs = load_file(HERE / "vit" / "model.safetensors")
    ours = collections.OrderedDict()
    ours["logit_scale"] = torch.nn.Parameter(torch.tensor(2.6592))
    ours["text.projection.weight"] = torch.zeros(3, 4)
    for name, tensor in theirs.items():
        name = name.removeprefix("vision_model.").replace("encoder.layers.", "transformer.resblocks.")
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            full = "vision_model." + name.replace("transformer.resblocks.", "encoder.layers.")
            tensor = torch.cat([theirs[full.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for before, after in (
            ("embeddings.class_embedding", "class_embedding"), ("embeddings.patch_embedding", "conv1"),
            ("embeddings.position_embedding.weight", "positional_embedding"), ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("self_attn", "attn"),
            ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
        ):
            name = name.replace(before, after)
        if name == "visual_projection.weight":
            name, tensor = "proj", tensor.t()  # not contiguous in the file
        ours["visual." + name] = torch.nn.Parameter(tensor)
    return ours


class Runs:
    def __reduce__(self):
        return os.system, ("true",)


class Other:
    pass


(HERE / "clip-openai").mkdir(exist_ok=True)
(HERE / "torch-files").mkdir(exist_ok=True)
wrapped = collections.OrderedDict(("module." + name, tensor) for name, tensor in openai_names().items())
torch.save({"epoch": 3, "name": "tiny", "rate": 1e-3, "state_dict": wrapped}, HERE / "clip-openai" / "epoch_3.pt")
(HERE / "clip-openai" / "config.json").write_text((HERE / "vit" / "config.json").read_text())

generator = torch.Generator().manual_seed(31)
base = torch.randn(6, 5, generator=generator)
kinds = {
    "double": base.double(), "half": base.half(), "bf16": base.bfloat16(), "transposed": base.t(), "slice": base[1:4, 2:],
    "row": base[2], "scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3),
}
save_file({name: tensor.contiguous().clone() for name, tensor in kinds.items()}, HERE / "torch-files" / "kinds.safetensors")
torch.save(dict(kinds, number=torch.tensor([1, -2]), truth=True, big=2**40, nothing=None), HERE / "torch-files" / "kinds.pt")
torch.save({"a": base, "b": Runs()}, HERE / "torch-files" / "runs.pt")
torch.save({"a": base, "b": Other()}, HERE / "torch-files" / "object.pt")
torch.save({"a": base}, HERE / "torch-files" / "old.pt", _use_new_zipfile_serialization=False)
