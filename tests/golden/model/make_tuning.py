"""Makes ten optimizer steps of `contrast` and `mntp` with transformers, peft and torch.optim: losses, and what was trained.

    venv/bin/python tests/golden/model/make_tuning.py

The environment is that of `make_text.py`; builds on `llama/` and `llama-sharded/`. Writes `tuning/`: the LoRA before the first step as
peft writes it, and a file a case: tokens, losses of the steps, and the trained tensors after the last one. Dropout is off: no two
libraries drop the same.
"""

import json

import torch
import transformers
from common import HERE
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, LlamaModel, get_linear_schedule_with_warmup

assert transformers.__version__ == "4.57.6", transformers.__version__
OUT = HERE / "tuning"
STEPS, PAIRS, BLOCKS, BLOCK = 10, 8, 4, 16
RATE, WARMUP, CLIP, SCALE = 2e-3, 3, 1.0, 20.0
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
numbers = torch.Generator().manual_seed(31)


def below(high, *shape):
    return torch.randint(high, shape, generator=numbers)


def llama(kind, folder):
    return kind.from_pretrained(HERE / folder, attn_implementation="sdpa", dtype=torch.float32)


def with_lora(model, save=None):
    model = get_peft_model(model, LoraConfig(target_modules=TARGETS, lora_dropout=0.0, r=4, lora_alpha=8))
    generator = torch.Generator().manual_seed(32)
    with torch.no_grad():
        # Named without what wraps the body, so that both models get the same numbers.
        for _, p in sorted((name.split("layers.")[-1], p) for name, p in model.named_parameters() if p.requires_grad):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5 * p.shape[-1] ** -0.5)
    if save:
        model.peft_config["default"].base_model_name_or_path = "llm2clip/tiny"
        model.save_pretrained(save, save_embedding_layers=False)
        (save / "README.md").unlink(missing_ok=True)
        path = save / "adapter_config.json"
        config = json.loads(path.read_text())
        config["target_modules"].sort()
        path.write_text(json.dumps(config, indent=2) + "\n")
    return model


def hidden(body, ids):
    """Hidden states of one text that sees both ways."""
    length = ids.numel()
    everything = torch.zeros(1, 1, length, length)
    return body(input_ids=ids[None], attention_mask=everything).last_hidden_state[0]


def train(model, loss_of, decay=0.0):
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in trained if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for _, p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def lora_state(model):
    short = lambda name: "layers." + name.split("layers.")[-1].replace(".default", "")
    return {"trained." + short(name): p for name, p in model.named_parameters() if p.requires_grad}


def contrast():
    model = with_lora(llama(LlamaModel, "llama"), OUT / "lora")
    lengths = 3 + below(7, STEPS, 3, PAIRS)
    starts = torch.minimum(below(3, STEPS, 3, PAIRS), lengths - 1)
    ids = below(model.config.vocab_size, int(lengths.sum()))
    at = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])

    def vectors(step, role):
        rows = []
        for pair in range(PAIRS):
            text = (step * 3 + role) * PAIRS + pair
            states = hidden(model.base_model.model, ids[at[text] : at[text + 1]])
            rows.append(states[starts[step, role, pair] :].mean(0))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def loss_of(step):
        query, positive, negative = (vectors(step, role) for role in range(3))
        scores = SCALE * query @ torch.cat([positive, negative]).T
        return torch.nn.functional.cross_entropy(scores, torch.arange(PAIRS))

    losses = train(model, loss_of)
    case = {"ids": ids, "lengths": lengths, "starts": starts, "losses": losses, **lora_state(model)}
    save_file({name: t.detach().contiguous() for name, t in case.items()}, OUT / "contrast.safetensors")


def mntp(file, model, body, lora):
    ids = below(model.config.vocab_size, STEPS, BLOCKS, BLOCK)
    masked = torch.rand(STEPS, BLOCKS, BLOCK, generator=numbers) < 0.25
    masked[..., 0] = False  # nothing is before the first token to predict it
    seen = torch.where(masked, torch.tensor(7), ids)

    def loss_of(step):
        states = torch.stack([hidden(body, seen[step, block]) for block in range(BLOCKS)])
        logits = model.get_output_embeddings()(states)[:, :-1]
        here = masked[step][:, 1:]
        return torch.nn.functional.cross_entropy(logits[here], ids[step][:, 1:][here])

    losses = train(model, loss_of, 0.0 if lora else 0.1)
    if lora:
        trained = lora_state(model)
    else:
        trained = {"trained." + name: p for name, p in body.named_parameters()}
    case = {"ids": ids, "seen": seen, "masked": masked.to(torch.int64), "losses": losses, **trained}
    save_file({name: t.detach().contiguous() for name, t in case.items()}, OUT / file)


OUT.mkdir(exist_ok=True)
contrast()
whole = with_lora(llama(LlamaForCausalLM, "llama-sharded"))
mntp("mntp-lora.safetensors", whole, whole.base_model.model.model, True)
whole = llama(LlamaForCausalLM, "llama-sharded")
mntp("mntp-all.safetensors", whole, whole.model, False)
