#!/usr/bin/env bash
# Checks a machine with an NVIDIA GPU in about ten minutes, and prints a table: collectives over NCCL, the demo on one and two
# ranks, recovery of killed ranks, steps beside open_clip's, the loss at large batches, an 8B LLM, checkpoints. What it left out
# stands in the table.
#
#   make build && make libtorch-cuda     (or set LIBTORCH to the torch folder of a CUDA PyTorch 2.11.0)
#   tests/gpu/run.sh [--out FOLDER] [--only GROUP[,GROUP]] [--budget SECONDS]
#
# `--help` lists the groups. `--device cpu` runs the same in small without a GPU: a check of this script, not of a machine.
exec python3 "$(dirname "$0")/checks.py" "$@"
