"""What `tests/gpu/run.sh` checks, a group a function, the most important first. Needs the built binaries, no package.

A row is `passed` or `FAILED` where a limit is known, `figure` where none is, and `skipped` with the reason."""

import argparse
import glob
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BINARIES = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target"), "release")
GIB = 2**30


class Checks:
    def __init__(self, options):
        self.device, self.out = options.device, options.out or tempfile.mkdtemp()
        self.small = options.device == "cpu" or options.small
        self.deadline = time.monotonic() + options.budget
        self.failed = False
        self.seen = {}
        os.makedirs(self.out, exist_ok=True)
        self.table = open(os.path.join(self.out, "table.txt"), "w")

    def row(self, result, what, figure):
        line = f"{result:8} {what:72} {figure}"
        print(line, flush=True)
        print(line, file=self.table, flush=True)
        self.failed |= result == "FAILED"

    def judge(self, fine, what, figure):
        self.row("passed" if fine else "FAILED", what, figure)

    def run(self, name, limit, command, device=None, environment=None, killed=False):
        """Its standard output, or none when it did not end as it should: well, or, killed, with a trainer's failure. Its words are in
        OUT/NAME.log."""
        left = self.deadline - time.monotonic()
        if left < 20:
            self.row("skipped", name, "out of time; alone: " + " ".join(command).replace(ROOT + "/", ""))
            return None
        known = {**os.environ, "LLM2CLIP_DEVICE": device or self.device, **(environment or {})}
        began = time.monotonic()
        with open(os.path.join(self.out, name + ".log"), "w") as log:
            try:
                done = subprocess.run(command, cwd=ROOT, env=known, stdout=subprocess.PIPE, stderr=log, text=True,
                                      stdin=subprocess.DEVNULL, timeout=min(limit, left))
            except subprocess.TimeoutExpired:
                self.row("FAILED", name, f"not done after {min(limit, left):.0f} s; see {log.name}")
                return None
            log.write(done.stdout)
            log.write(f"\n{time.monotonic() - began:.1f} s\n")
        if done.returncode not in ((1, 93) if killed else (0,)):
            self.row("FAILED", name, f"exit code {done.returncode}; see {log.name}")
            return None
        return done.stdout

    def llm2clip(self, name, limit, *arguments, **around):
        return self.run(name, limit, [os.path.join(BINARIES, "llm2clip"), *arguments], **around)

    def bench(self, name, limit, what, figure, *arguments, fine=None):
        """A measurement's fields; `figure` and `fine` are functions of them."""
        said = self.llm2clip(name, limit, "bench", *arguments)
        if said is None:
            return None
        fields = self.seen[name] = json.loads(said)
        with open(os.path.join(self.out, name + ".json"), "w") as file:
            file.write(said)
        if fine is None or self.small:
            self.row("figure", what, figure(fields))
        else:
            self.judge(fine(fields), what, figure(fields))
        return fields

    def job(self, name, limit, *settings, ranks=1, **around):
        """Runs the demo's recipe; whether it ended as it should."""
        command = ["run", "configs/demo-quick.toml", "--workers", str(ranks), "--set", f"output={self.out}/{name}"]
        for setting in settings:
            command += ["--set", setting]
        return self.llm2clip(name, limit, *command, **around) is not None

    def metrics(self, name):
        with open(f"{self.out}/{name}/clip/metrics.jsonl") as lines:
            return [json.loads(line) for line in lines]

    def recalls(self, name):
        with open(f"{self.out}/{name}/eval/results.json") as file:
            tasks = json.load(file)["retrieval"]
        return ", ".join(f"{100 * task['recall_at_1']:.1f} %" for task in tasks)

    def apart(self, what, one, other, limit):
        """The largest relative difference of two jobs' losses over their common steps."""
        try:
            one, other = ({line["step"]: line["loss"] for line in self.metrics(name)} for name in (one, other))
        except FileNotFoundError as error:
            return self.row("skipped", what, f"{error.filename} is missing")
        common = one.keys() & other.keys()
        worst = max(abs(one[step] - other[step]) / abs(other[step]) for step in common)
        self.judge(worst <= limit, what, f"{worst:.1e} over {len(common)} steps (limit {limit:.0e})")

    def tower(self, name, **sizes):
        return self.folder(name, {"projection_dim": 1280, **sizes})

    def clip_tower(self, name, image, patch, width, layers, heads):
        return self.tower(name, model_type="clip_vision_model", image_size=image, patch_size=patch, hidden_size=width,
                          num_hidden_layers=1 if self.small else layers, num_attention_heads=heads,
                          intermediate_size=4 * width, hidden_act="quick_gelu", layer_norm_eps=1e-5)

    def folder(self, name, config):
        folder = os.path.join(self.out, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(config, file)
        return folder


def collectives(checks):
    """NCCL's contract between two ranks, abort of a stuck operation, a killed peer; bandwidth"""
    what = "contract of the collectives over NCCL, two ranks; a killed peer"
    built = sorted(glob.glob(os.path.join(BINARIES, "deps", "nccl-*")), key=os.path.getmtime)
    built = [path for path in built if os.access(path, os.X_OK) and not path.endswith(".d")]
    if checks.device == "cpu" or not built:
        checks.row("skipped", what, "needs a GPU and `cargo test --release --workspace --test nccl --no-run`")
    else:
        said = checks.run("contract", 180, [built[-1], "--nocapture", "--test-threads=1"],
                          environment={"LLM2CLIP_TEST_GPU": "1"})
        if said is not None:
            checks.row("passed", what, next(line for line in said.splitlines() if "passed" in line))
    said = checks.llm2clip("collective", 120, "bench", "collective", "--device", checks.device)
    if said is not None:
        for size in json.loads(said)["sizes"]:
            speed = lambda name: f"{size[f'all_{name}_gib_per_s']:.1f} GiB/s"
            figure = f"all-reduce {speed('reduce')}, all-gather {speed('gather')}"
            checks.row("figure", f"bandwidth between two ranks, {size['mib']} MiB", figure)


def job(checks):
    """The demo on one rank, on two, beside the CPU, and killed and resumed"""
    epochs = ["stage.clip.epochs=1"] if checks.small else []
    for ranks in (1, 2):
        name = f"demo-{ranks}"
        if checks.job(name, 300, *epochs, ranks=ranks):
            checks.row("figure", f"demo on {ranks} rank(s): R@1 short i2t, t2i, long i2t, t2i", checks.recalls(name))
    checks.apart("losses of one rank and of two are apart by", "demo-1", "demo-2", 1e-2)
    if checks.job("short-cpu", 200, "stage.clip.epochs=1", device="cpu"):
        for precision, limit in (("fp32", 1e-2), ("bf16", 5e-2)):
            name = f"short-{precision}"
            if checks.job(name, 120, "stage.clip.epochs=1", f"stage.clip.precision={precision}"):
                checks.apart(f"losses here in {precision} and on the CPU in fp32 are apart by", name, "short-cpu", limit)
    # All ranks kill themselves by signal 9 at each start, some steps after a checkpoint: a failure (1), or no progress (93).
    kill = "clip.step=kill@20" if checks.small else "clip.step=kill@60"
    every = ["stage.clip.checkpoint.every_steps=10"] if checks.small else []
    checks.job("killed", 300, *epochs, *every, environment={"LLM2CLIP_FAILPOINTS": kill}, killed=True)
    if checks.llm2clip("resumed", 300, "resume", f"{checks.out}/killed") is not None:
        checks.row("figure", "resumed: R@1", checks.recalls("killed"))
        checks.apart("its losses and the undisturbed run's are apart by", "killed", "demo-1", 1e-2)


def recovery(checks):
    """Ranks are killed in mid-training, their peers go on from memory"""
    phases = "any,forward,all-reduce"
    said = checks.llm2clip("recovery", 240, "bench", "recovery", "configs/demo-quick.toml", "--kills", "2", "--phase", phases,
                           "-o", "json")
    if said is not None:
        found = json.loads(said)
        new = found["kill_to_next_new_step_s"]
        figure = f"{found['kills']} deaths: new step after {new['median']:.2f} s, {new['worst']:.2f} s at most, " \
                 f"{found['steps_lost']} steps lost"
        checks.judge(found["steps_lost"] == 0, "kill -9 of a rank: its peer goes on over NCCL, in memory", figure)


def of_step(fields):
    return f"{fields['images_per_s']:.1f} images/s, {fields['model_flop_per_s'] / 1e12:.1f} TFLOP/s, " \
           f"MFU {100 * (fields['mfu'] or 0):.1f} %, {fields['peak_memory_bytes'] / GIB:.1f} GiB"


def towers(checks):
    layers = 1 if checks.small else 24
    return {
        "ViT-L-14-336": checks.clip_tower("l14-336", 336, 14, 1024, 24, 16),
        "EVA02-L-14-336": checks.tower("eva02-l14-336", model_type="eva02_clip", image_size=336, patch_size=14,
                                       hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16),
        "ViT-B-16": checks.clip_tower("b16", 224, 16, 768, 12, 12),
    }


def batch_of(checks, tower):
    return 1 if checks.small else {"ViT-L-14-336": 64, "EVA02-L-14-336": 64, "ViT-B-16": 512}[tower]


def step(checks):
    """Optimizer steps: ViT-L/14-336, EVA02-L/14-336, B/16 in bf16, each with a 4-block adapter"""
    common = ["--precision", "bf16", "--device", checks.device, "--text-width", "4096", "--warmup", "3", "--repeats", "8"]
    fine = lambda fields: fields["mfu"] is None or fields["mfu"] >= 0.4
    for name, folder in towers(checks).items():
        batch = str(batch_of(checks, name))
        checks.bench(f"step-{name}", 120, f"step of {name}, bf16 (limit: MFU 40 %)", of_step, "step", "--vision", folder,
                     "--batch", batch, *common, fine=fine)


def peers(checks):
    """The same steps by open_clip 3.3.0, eager and compiled: ours is to be at least as fast as the faster"""
    if not (importlib.util.find_spec("open_clip") and importlib.util.find_spec("torch")):
        return checks.row("skipped", "open_clip's steps", "needs open_clip_torch 3.3.0 and a CUDA PyTorch in python3")
    for name in towers(checks):
        if checks.small and name != "ViT-B-16":
            continue
        best = 0.0
        for mode in ("eager", "compiled"):
            if checks.small and mode == "compiled":
                continue
            batch = str(batch_of(checks, name))
            said = checks.run(f"open_clip-{name}-{mode}", 150,
                              [sys.executable, f"{HERE}/open_clip_step.py", name, batch, checks.device, mode])
            if said is not None:
                checks.row("figure", f"open_clip's step of {name}, {mode}", said.strip())
                best = max(best, float(said.split()[0]))
        ours = checks.seen.get(f"step-{name}", {}).get("images_per_s")
        if best and ours and not checks.small:
            checks.judge(ours >= best, f"step of {name}: ours over the faster of open_clip's (limit 1.0)", f"{ours / best:.2f}")


def chunks(checks):
    """GradCache beside a plain step; a global batch of 65,536 of ViT-L/14-224 on one card"""
    l14 = checks.clip_tower("l14", 224, 14, 1024, 24, 16)
    batch, large, huge = (2, 4, 8) if checks.small else (128, 1024, 65_536)
    common = ["step", "--vision", l14, "--precision", "bf16", "--device", checks.device]
    plain = checks.bench("step-plain", 120, "step of ViT-L/14-224, plain", of_step, *common, "--batch", str(batch),
                         "--warmup", "2", "--repeats", "5")
    checks.bench("step-blocks", 120, "the same, blocks run again", of_step, *common, "--batch", str(batch),
                 "--activation-checkpointing", "--warmup", "2", "--repeats", "5")
    if plain:
        limit = 4 / 3 * 1.03
        times = lambda fields: plain["images_per_s"] / fields["images_per_s"]
        checks.bench("step-chunks", 120, f"the same by GradCache, times the plain step's time (limit {limit:.3f})",
                     lambda fields: f"{times(fields):.3f}: {of_step(fields)}", *common, "--batch", str(large), "--chunk",
                     str(batch), "--warmup", "1", "--repeats", "2", fine=lambda fields: times(fields) <= limit)
    checks.bench("step-huge", 300, f"one step of {huge} pairs of ViT-L/14-224 on this card", of_step, *common, "--batch",
                 str(huge), "--chunk", str(4 * batch), "--warmup", "0", "--repeats", "1")


def loss(checks):
    """The loss at 32k, 256k and 1M pairs, one eighth of the rows here, width 1280; its share of a B/32 step; open_clip's"""
    pairs = [1024, 2048] if checks.small else [32_768, 262_144, 1_048_576]
    limits = {262_144: 1.5, 1_048_576: 4.5}
    for count in pairs:
        limit = limits.get(count)
        what = f"loss of {count} pairs, 1/8 of them here" + (f" (limit {limit} GiB)" if limit else "")
        peak = lambda fields: fields["streamed_peak_bytes"] / GIB
        checks.bench(f"loss-{count}", 120, what, lambda fields: f"{fields['streamed_s'] * 1e3:.1f} ms, {peak(fields):.2f} GiB",
                     "loss", "--global-batch", str(count), "--rows", str(count // 8), "--width", "1280", "--precision", "bf16",
                     "--streamed-only", "--device", checks.device, "--warmup", "1", "--repeats", "3",
                     fine=(lambda fields, limit=limit: peak(fields) <= limit) if limit else None)
    rows = pairs[0] // 8
    b32 = checks.clip_tower("b32", 224, 32, 768, 12, 12)
    whole = checks.bench("step-b32", 120, f"step of ViT-B/32 of {rows} pairs, bf16", of_step, "step", "--vision", b32, "--batch",
                         str(rows), "--chunk", str(max(rows // 4, 1)), "--precision", "bf16", "--device", checks.device,
                         "--warmup", "1", "--repeats", "3")
    own = checks.seen.get(f"loss-{pairs[0]}")
    if whole and own and not checks.small:
        # The step's own loss is of its rows alone: the one of the global batch takes its place.
        share = own["streamed_s"] / (whole["step_s"] - whole["loss_s"] + own["streamed_s"])
        checks.judge(share <= 0.01, f"the loss of {pairs[0]} pairs in such a step (limit 1 %)", f"{100 * share:.2f} %")
    if not (importlib.util.find_spec("open_clip") and importlib.util.find_spec("torch")):
        return checks.row("skipped", "open_clip's local loss", "needs open_clip_torch 3.3.0 and a CUDA PyTorch in python3")
    for count in pairs:
        said = checks.run(f"open_clip-loss-{count}", 120,
                          [sys.executable, f"{HERE}/open_clip_loss.py", str(count), str(count // 8), "1280", checks.device])
        if said is not None:
            checks.row("figure", f"open_clip's local loss of {count} pairs", said.strip())


def llm(checks):
    """An LLM in the shape of Llama-3-8B: `embed`, and a step of `contrast` with LoRA at 512 tokens, batch 512"""
    shape = {"model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336,
             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
             "rope_theta": 500_000.0}
    if checks.small:
        shape |= {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = checks.folder("llama", shape)
    common = ["--text", folder, "--precision", "bf16", "--device", checks.device]
    speed = lambda fields: f"{fields['tokens_per_s']:.0f} tokens/s, MFU {100 * (fields['mfu'] or 0):.1f} %, " \
                           f"{fields['peak_memory_bytes'] / GIB:.1f} GiB"
    texts, batch, longest = (32, 4, 32) if checks.small else (4096, 512, 512)
    checks.bench("embed", 120, "Llama-3-8B reads captions of 8 to 256 tokens", speed, "embed", *common, "--texts", str(texts),
                 "--longest", str(longest // 2), "--batch-tokens", "32768", "--repeats", "2")
    checks.bench("contrast", 300, f"Llama-3-8B tuned with LoRA, {batch} pairs of {longest} tokens, by GradCache",
                 lambda fields: f"{fields['step_s']:.1f} s a step, {speed(fields)}", "contrast", *common, "--batch", str(batch),
                 "--chunk", str(max(batch // 32, 1)), "--shortest", str(longest), "--longest", str(longest),
                 "--activation-checkpointing", "--warmup", "0", "--repeats", "1")
    checks.bench("contrast-mixed", 120, "the same, 64 pairs of 16 to 512 tokens",
                 lambda fields: f"{fields['step_s']:.1f} s a step, {speed(fields)}", "contrast", *common, "--batch",
                 str(batch // 8 or 1), "--chunk", str(max(batch // 16, 1)), "--shortest", "16", "--longest", str(longest),
                 "--activation-checkpointing", "--warmup", "0", "--repeats", "2")


def checkpoint(checks):
    """A checkpoint of ViT-L/14's state: how long training stands still, and until it is on storage"""
    checks.bench("checkpoint", 120, "checkpoint of the L/14 state (limits: 0.2 s still, 10 s to storage)",
                 lambda fields: f"{fields['stall_s']:.2f} s still, {fields['write_s']:.1f} s to storage", "checkpoint",
                 "--million-parameters", "4" if checks.small else "430", "--device", checks.device, "--folder", checks.out,
                 "--repeats", "2", fine=lambda fields: fields["stall_s"] <= 0.2 and fields["write_s"] <= 10)


def end_to_end(checks):
    """ViT-L/14-336 trained on images from tars, beside the step alone"""
    name = "ViT-L-14-336"
    folder = towers(checks)[name]
    batch = 4 * batch_of(checks, name)
    settings = ["stage.clip.epochs=2", f"stage.clip.global_batch={batch}", f"stage.clip.chunk={batch // 4}",
                "stage.clip.precision=bf16", "stage.clip.patch_dropout=0.0", f"model.vision.folder={folder}"]
    if checks.small:
        return checks.row("skipped", f"{name} end to end", "takes a GPU")
    if checks.job("end-to-end", 240, *settings):
        steps = checks.metrics("end-to-end")[3:]
        speed = batch / statistics.median(line["step_s"] for line in steps)
        waited = sum(line["data_wait_s"] for line in steps) / sum(line["step_s"] for line in steps)
        checks.row("figure", f"{name} end to end, batch {batch}, by GradCache", f"{speed:.1f} samples/s, "
                   f"waiting for data {100 * waited:.1f} %")


GROUPS = [collectives, job, recovery, step, peers, chunks, loss, llm, checkpoint, end_to_end]


def main():
    groups = "\n".join(f"  {group.__name__:12} {group.__doc__}" for group in GROUPS)
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", epilog="groups, in this order:\n" + groups,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="where logs and figures stay; a new temporary folder unless given")
    parser.add_argument("--only", help="these groups alone, with commas between")
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS", help="what has not begun then is skipped")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu checks this script without a GPU")
    parser.add_argument("--small", action="store_true", help="small models, as with --device cpu")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [group.__name__ for group in GROUPS]
    unknown = sorted(set(chosen) - {group.__name__ for group in GROUPS})
    if unknown:
        parser.error(f"no group is called {', '.join(unknown)}; see --help")
    if not os.access(os.path.join(BINARIES, "llm2clip"), os.X_OK):
        parser.error(f"{BINARIES}/llm2clip is missing: `make build` first")
    checks = Checks(options)
    if options.device == "cuda" and not options.small:
        try:
            query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            checks.row("machine", subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip(), "")
        except (OSError, subprocess.CalledProcessError):
            parser.error("nvidia-smi shows no GPU; --device cpu checks this script without one")
    for group in GROUPS:
        if group.__name__ in chosen:
            group(checks)
        else:
            checks.row("skipped", group.__doc__, "not asked for")
    print(f"everything is in {checks.out}")
    sys.exit(1 if checks.failed else 0)


main()
