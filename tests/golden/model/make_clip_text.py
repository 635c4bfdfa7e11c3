"""Makes the reference tensors of CLIP's text tower from transformers and open_clip: tiny random networks.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==4.57.6 open_clip_torch==3.3.0 safetensors==0.8.0
    venv/bin/python tests/golden/model/make_clip_text.py

Writes beside itself `clip-text/` (a `CLIPTextModelWithProjection` as users have it), `clip-text-whole/` (a whole `CLIPModel` whose text
tower has the same weights), `clip-text-open/` (a whole CLIP of open_clip's), and one safetensors a case with `ids` [B, L], padded,
`output`, `probe` and `grad.NAME` of every parameter of sum(output * probe). open_clip's is computed in
fp64; Hugging Face's mask knows no fp64.

The two ways in which a text's end is found: `eos_token_id` 38 is looked up, 2 means the highest id.
"""

import json

import open_clip
import torch
import transformers
from common import HERE, randomise, rounded, save_case
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig

assert transformers.__version__ == "4.57.6", transformers.__version__
assert open_clip.__version__ == "3.3.0", open_clip.__version__

LENGTH = 9
# Token 39 stands before an end that is looked up; where the highest id ends a text, it is 39.
TEXTS = {
    38: [[36, 3, 39, 14, 38], [36, 38], [36, 5, 39, 2, 6, 5, 3, 5, 38]],
    2: [[36, 3, 38, 14, 39], [36, 39], [36, 5, 38, 2, 6, 5, 3, 5, 39]],
}


def padded(texts, with_id):
    return torch.tensor([ids + [with_id] * (LENGTH - len(ids)) for ids in texts])


def config(activation, end):
    return CLIPTextConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12,
        projection_dim=20, hidden_act=activation, bos_token_id=36, eos_token_id=end, pad_token_id=end, attn_implementation="sdpa",
    )


def probe(seed):
    return torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))


def hugging_face():
    for name, activation, end in (("quick-gelu", "quick_gelu", 38), ("gelu", "gelu", 2)):
        model = CLIPTextModelWithProjection(config(activation, end))
        randomise(model, 21)
        if activation == "quick_gelu":
            model.save_pretrained(HERE / "clip-text")
            vision = CLIPVisionConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
            )
            whole = CLIPModel(CLIPConfig(config(activation, end).to_dict(), vision.to_dict(), projection_dim=20))
            whole.load_state_dict({**whole.state_dict(), **model.state_dict()})
            whole.save_pretrained(HERE / "clip-text-whole")
        ids = padded(TEXTS[end], 38 if end == 38 else 7)
        forward = lambda m: m(input_ids=ids).text_embeds
        save_case(f"clip-text-{name}.safetensors", model, {"ids": ids}, forward(model), probe(22), forward)


def open_clip_names():
    text = dict(context_length=12, vocab_size=40, width=32, heads=2, layers=2, mlp_ratio=2.0)
    vision = dict(image_size=16, patch_size=8, width=16, head_width=8, layers=1, mlp_ratio=1.0)
    model = open_clip.model.CLIP(20, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), quick_gelu=True)
    randomise(model, 23)
    folder = HERE / "clip-text-open"
    folder.mkdir(exist_ok=True)
    save_file(rounded(model.state_dict()), folder / "open_clip_model.safetensors")
    sizes = dict(model_type="clip_text_model", vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=2, max_position_embeddings=12, projection_dim=20, hidden_act="quick_gelu", eos_token_id=2)
    (folder / "config.json").write_text(json.dumps(sizes, indent=2) + "\n")
    # open_clip wants all positions, and fills with 0.
    ids = torch.nn.functional.pad(padded(TEXTS[2], 0), (0, 12 - LENGTH))
    output = model.double().eval().encode_text(ids)
    save_file(rounded({"ids": ids, "output": output}), HERE / "clip-text-open.safetensors")


hugging_face()
open_clip_names()
