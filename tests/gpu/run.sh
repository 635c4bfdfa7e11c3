#!/usr/bin/env bash
# Checks a machine with an NVIDIA GPU in about ten minutes: collectives over NCCL, and the demo on one rank, on two ranks of
# one card, killed and resumed, and beside the CPU. Prints a table; what it left out stands in it.
#
#   make build && make libtorch-cuda     (or set LIBTORCH to the torch folder of a CUDA PyTorch 2.11.0)
#   tests/gpu/run.sh [OUT]               OUT keeps logs and figures; a new temporary folder unless given
#
# DEVICE=cpu runs the same steps without a GPU: a check of this script, not of a machine.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-$(mktemp -d)}
mkdir -p "$out"
device=${DEVICE:-cuda}
bin=${CARGO_TARGET_DIR:-target}/release
llm2clip=$bin/llm2clip
table=$out/table.txt
: > "$table"
failed=0

# row RESULT WHAT FIGURE
row() {
  printf '%-8s %-58s %s\n' "$1" "$2" "$3" | tee -a "$table"
  [ "$1" = FAILED ] && failed=1
  return 0
}

# What a finished job's results say: the four R@1 in percent.
recalls() {
  python3 -c 'import json,sys; print(", ".join("%.1f %%" % (100 * f["recall_at_1"]) for f in json.load(open(sys.argv[1]))["retrieval"]))' \
    "$1/eval/results.json" 2>> "$out/errors.log"
}

# The largest relative difference of two jobs' losses over their common steps.
apart() {
  python3 - "$1/clip/metrics.jsonl" "$2/clip/metrics.jsonl" <<'PY'
import json, sys
a, b = ({r["step"]: r["loss"] for r in map(json.loads, open(p))} for p in sys.argv[1:])
print("%.1e over %d steps" % (max(abs(a[s] - b[s]) / abs(a[s]) for s in a if s in b), len(a.keys() & b.keys())))
PY
}

# job NAME LIMIT ARGUMENTS: runs the demo's recipe; its words are in OUT/NAME.log.
job() {
  local name=$1 limit=$2
  shift 2
  timeout "$limit" "$llm2clip" run configs/demo-quick.toml --set "output=$out/$name" "$@" > "$out/$name.log" 2>&1
}

[ -x "$llm2clip" ] || { echo "error: $llm2clip is missing: \`make build\` first" >&2; exit 2; }
if [ "$device" = cuda ]; then
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null | tee -a "$table"
  [ "${PIPESTATUS[0]}" = 0 ] || { echo "error: nvidia-smi shows no GPU; DEVICE=cpu checks this script without one" >&2; exit 2; }
fi
export LLM2CLIP_DEVICE=$device

contract=$(ls -t "$bin"/deps/nccl-* 2> /dev/null | grep -v '\.d$' | head -n 1)
if [ "$device" != cuda ] || [ -z "$contract" ]; then
  row skipped "contract of the collectives over NCCL, two ranks" "needs a GPU and \`cargo test --release --workspace --test nccl --no-run\`"
elif LLM2CLIP_TEST_GPU=1 timeout 180 "$contract" --nocapture > "$out/contract.log" 2>&1; then
  row passed "contract of the collectives over NCCL, two ranks" "$(grep -o '[0-9]* passed' "$out/contract.log")"
else
  row FAILED "contract of the collectives over NCCL, two ranks" "see $out/contract.log"
fi

if timeout 120 "$llm2clip" bench collective --device "$device" > "$out/collective.json" 2>> "$out/errors.log"; then
  row passed "bandwidth between two ranks" "see $out/collective.json"
else
  row FAILED "bandwidth between two ranks" "see $out/errors.log"
fi

for ranks in 1 2; do
  what="demo on $ranks rank(s): R@1 short i2t, t2i, long i2t, t2i"
  if job "demo-$ranks" 300 --workers "$ranks"; then
    row passed "$what" "$(recalls "$out/demo-$ranks")"
  else
    row FAILED "$what" "see $out/demo-$ranks.log"
  fi
done
row figure "losses of one rank and of two are apart by" "$(apart "$out/demo-1" "$out/demo-2")"

export LLM2CLIP_DEVICE=cpu
if job cpu 200 --set stage.clip.epochs=1; then
  LLM2CLIP_DEVICE=$device job short 120 --set stage.clip.epochs=1
  row figure "losses here and on the CPU are apart by" "$(apart "$out/cpu" "$out/short")"
else
  row FAILED "the same steps on the CPU" "see $out/cpu.log"
fi
export LLM2CLIP_DEVICE=$device

# All ranks kill themselves by signal 9 before step 60, ten steps after the first checkpoint.
LLM2CLIP_FAILPOINTS=clip.step=kill@60 job killed 300
if timeout 300 "$llm2clip" resume "$out/killed" > "$out/resumed.log" 2>&1; then
  row passed "killed by signal 9 after step 50, resumed: R@1" "$(recalls "$out/killed")"
  row figure "its losses and the undisturbed run's are apart by" "$(apart "$out/killed" "$out/demo-1")"
else
  row FAILED "killed by signal 9 after step 50, resumed" "see $out/resumed.log"
fi
# bench NAME LIMIT WHAT FORMAT ARGUMENTS: a measurement; FORMAT is of Python, over the fields of its JSON.
bench() {
  local name=$1 limit=$2 what=$3 format=$4
  shift 4
  if timeout "$limit" "$llm2clip" bench "$@" > "$out/$name.json" 2>> "$out/errors.log"; then
    row figure "$what" "$(python3 -c 'import json,sys; f=json.load(open(sys.argv[1])); print(eval("f\"" + sys.argv[2] + "\""))' "$out/$name.json" "$format")"
  else
    row FAILED "$what" "see $out/errors.log"
  fi
}

# A tower's config.json: NAME, image size, patch, width, layers, heads, inner width.
tower() {
  mkdir -p "$out/$1"
  printf '{"model_type":"clip_vision_model","image_size":%s,"patch_size":%s,"hidden_size":%s,"num_hidden_layers":%s,"num_attention_heads":%s,"intermediate_size":%s,"hidden_act":"quick_gelu","layer_norm_eps":1e-5,"projection_dim":1280}\n' \
    "$2" "$3" "$4" "$5" "$6" "$7" > "$out/$1/config.json"
}

if [ "$device" = cuda ]; then
  batch=64 large=1024 million=1048576 quarter=262144 rows=8 large_layers=24 base_layers=12
else
  # The same steps in small, to check this script.
  batch=1 large=4 million=2048 quarter=1024 rows=8 large_layers=1 base_layers=1
fi
tower l14-336 336 14 1024 $large_layers 16 4096
tower l14 224 14 1024 $large_layers 16 4096
tower b16 224 16 768 $base_layers 12 3072
step="{f['images_per_s']:.1f} images/s, {f['model_flop_per_s']/1e12:.1f} TFLOP/s, MFU {100*(f['mfu'] or 0):.1f} %, {f['peak_memory_bytes']/2**30:.1f} GiB"
common="--precision bf16 --device $device --text-width 4096 --warmup 2 --repeats 5"
bench step-l14-336 120 "step of ViT-L/14-336 and a 4-block adapter, bf16" "$step" step --vision "$out/l14-336" --batch $batch $common
bench step-b16 60 "step of ViT-B/16, bf16" "$step" step --vision "$out/b16" --batch $((batch * 4)) $common
bench step-l14 120 "step of ViT-L/14-224, plain" "$step" step --vision "$out/l14" --batch $((batch * 2)) $common
bench step-l14-blocks 120 "the same, blocks run again" "$step" step --vision "$out/l14" --batch $((batch * 2)) --activation-checkpointing $common
bench step-l14-chunks 120 "the same as GradCache: limit 4/3 + 3 % of plain" "$step" step --vision "$out/l14" --batch $large --chunk $((batch * 2)) $common
if [ "$device" = cuda ] && python3 -c 'import open_clip' 2> /dev/null; then
  for compile in eager compiled; do
    python3 tests/gpu/open_clip_step.py ViT-L-14-336 "$batch" "$device" "$compile" > "$out/open_clip-$compile.json" 2>> "$out/errors.log" &&
      row figure "open_clip's step of ViT-L/14-336, $compile" "$(cat "$out/open_clip-$compile.json")"
  done
else
  row skipped "open_clip's step of ViT-L/14-336" "needs open_clip_torch 3.3.0 and a CUDA PyTorch in python3"
fi
loss="{f['streamed_s']*1e3:.1f} ms, {f['streamed_peak_bytes']/2**30:.2f} GiB at most"
for pairs in 32768 $quarter $million; do
  [ "$device" = cuda ] || [ "$pairs" != 32768 ] || continue
  bench "loss-$pairs" 120 "loss of $pairs pairs, width 1280, 1/$rows of them here, bf16" "$loss" \
    loss --global-batch "$pairs" --rows $((pairs / rows)) --width 1280 --precision bf16 --streamed-only --device "$device" --warmup 1 --repeats 3
done
bench checkpoint 120 "checkpoint of the L/14 state: limits 0.2 s and 10 s" "{f['stall_s']:.2f} s still, {f['write_s']:.1f} s to storage" \
  checkpoint --million-parameters $([ "$device" = cuda ] && echo 430 || echo 4) --device "$device" --folder "$out" --repeats 2
row skipped "EVA02-L/14-336, \`contrast\` of Llama-3-8B, recovery of a lost rank in the process" "not built yet"

echo "everything is in $out"
exit "$failed"
