"""Loads LoRA folders that the model tests wrote with peft, and compares outputs with the reference.

    LLM2CLIP_PEFT_FOLDER=/tmp/peft cargo test --release --workspace --lib a_written_folder
    venv/bin/python tests/golden/model/check_peft.py /tmp/peft

The environment is that of `make_text.py`. A key that peft does not know, or misses, is an error here.
"""

import pathlib
import sys
import warnings

import torch
from common import HERE
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, LlamaModel

warnings.simplefilter("error", UserWarning)  # peft only warns about missing keys
ROOT = pathlib.Path(sys.argv[1])


def outputs(body, case):
    with torch.no_grad():
        hidden = body(input_ids=case["ids"], attention_mask=case["keep"].long()).last_hidden_state
    return hidden * case["keep"][..., None]


def compare(name, found, expected):
    off = ((found - expected).norm() / expected.norm()).item()
    print(f"{name}: off by {off:.1e}")
    assert off < 1e-5


base = lambda kind: kind.from_pretrained(HERE / "llama", attn_implementation="sdpa", dtype=torch.float32)
body = base(LlamaModel)
one = PeftModel.from_pretrained(body, ROOT / "lora-llama")
case = load_file(HERE / "lora-llama.safetensors")
compare("lora-llama", outputs(one, case), case["output"])
whole = LlamaForCausalLM(body.config)
whole.model.load_state_dict(one.merge_and_unload().state_dict())
two = PeftModel.from_pretrained(whole, ROOT / "lora-llama-lm")
case = load_file(HERE / "lora-llama-lm.safetensors")
compare("lora-llama-lm", outputs(two.base_model.model.model, case), case["output"])
