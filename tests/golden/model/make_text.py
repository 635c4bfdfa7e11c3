"""Makes the reference tensors of Qwen2, of a tied and sharded Llama, and of LoRA, from transformers and peft.

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 transformers==4.57.6 peft==0.21.2 safetensors==0.8.0
    venv/bin/python tests/golden/model/make_golden.py && venv/bin/python tests/golden/model/make_text.py

Builds on `llama/` and `vit/` of `make_golden.py`. Writes `qwen2/` and `llama-sharded/` (model folders), `lora-*/` (folders as
peft writes them) and the cases. CLIP is computed in fp64 and rounded once, language models in fp32.
"""

import copy
import json

import peft
import torch
import transformers
from common import HERE, randomise, rounded, save_case
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionModelWithProjection, LlamaForCausalLM, LlamaModel, Qwen2Config, Qwen2Model,
)

assert transformers.__version__ == "4.57.6", transformers.__version__
assert peft.__version__ == "0.21.2", peft.__version__

TEXT = load_file(HERE / "llama-causal.safetensors")
IDS, KEEP, PROBE = TEXT["ids"], TEXT["keep"], TEXT["probe"]


def of_body(body):
    return body(input_ids=IDS, attention_mask=KEEP.long()).last_hidden_state * KEEP[..., None]


def text_case(file, model, forward=of_body):
    save_case(file, model, {"ids": IDS, "keep": KEEP}, forward(model), PROBE, forward)


def qwen2():
    config = Qwen2Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        rms_norm_eps=1e-6, rope_theta=1000.0, max_position_embeddings=128, tie_word_embeddings=True, attn_implementation="sdpa",
    )
    model = Qwen2Model(config)
    randomise(model, 21)
    model.save_pretrained(HERE / "qwen2")
    text_case("qwen2.safetensors", model)


def sharded():
    """The Llama of `llama/` with a tied head, `model.` before its names, in several files with an index."""
    body = LlamaModel.from_pretrained(HERE / "llama")
    config = copy.deepcopy(body.config)
    config.tie_word_embeddings = True
    config.architectures = None
    whole = LlamaForCausalLM(config)
    whole.model.load_state_dict(body.state_dict())
    whole.tie_weights()
    whole.save_pretrained(HERE / "llama-sharded", max_shard_size="30KB")


def lora(base, seed, name, targets, **settings):
    model = get_peft_model(base, LoraConfig(target_modules=targets, lora_dropout=0.0, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.5 * p.shape[-1] ** -0.5)
    folder = HERE / name
    model.peft_config["default"].base_model_name_or_path = "llm2clip/tiny"
    model.save_pretrained(folder, save_embedding_layers=False)  # otherwise it asks the hub for the base
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()  # written in the order of a set
    path.write_text(json.dumps(config, indent=2) + "\n")
    return model


def lora_cases():
    llama = lambda kind: kind.from_pretrained(HERE / "llama", attn_implementation="sdpa", dtype=torch.float32)
    one = lora(llama(LlamaModel), 22, "lora-llama", ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], r=4, lora_alpha=8)
    text_case("lora-llama.safetensors", one)

    # A second one, saved from the language model, trained after the first was merged.
    whole = llama(LlamaForCausalLM)
    whole.model.load_state_dict(one.merge_and_unload().state_dict())
    two = lora(whole, 23, "lora-llama-lm", ["k_proj", "v_proj", "up_proj"], r=3, lora_alpha=5, use_rslora=True)
    forward = lambda m: of_body(m.base_model.model.model)
    text_case("lora-llama-lm.safetensors", two, forward)
    with torch.no_grad():
        merged = of_body(two.merge_and_unload().model)
    save_file(rounded({"ids": IDS, "keep": KEEP, "output": merged}), HERE / "lora-llama-merged.safetensors")

    case = load_file(HERE / "vit-quick-gelu.safetensors")
    pixels, probe = case["pixels"], case["probe"]
    vit = CLIPVisionModelWithProjection.from_pretrained(HERE / "vit", attn_implementation="sdpa")
    model = lora(vit, 24, "lora-vit", ["q_proj", "k_proj", "v_proj", "out_proj"], r=4, lora_alpha=4).double()
    forward = lambda m: m(pixel_values=pixels.to(next(m.parameters()).dtype)).image_embeds
    save_case("lora-vit.safetensors", model, {"pixels": pixels}, forward(model), probe.double(), forward)


qwen2()
sharded()
lora_cases()
