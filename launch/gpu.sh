#!/usr/bin/env bash
# Runs the default experiment and the benchmarks of loop and search on a GPU.
# Usage: bash launch/gpu.sh [FOLDER for runs and results, default runs/gpu]
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
source "$ROOT/launch/setup_venv.sh"
command -v nvidia-smi >/dev/null || tsd_jax_fail \
  "no NVIDIA driver here (nvidia-smi is missing): bash launch/local.sh runs" \
  "the default experiment on any machine"
tsd_jax_setup "cuda12"
source "$ROOT/launch/large_pages.sh"
tsd_jax_large_pages
FOLDER="${1:-runs/gpu}"
mkdir -p "$FOLDER"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
run() { "$VENV/bin/python" -P "$@"; }
run -c 'import jax; print("on", jax.devices("gpu"))' || tsd_jax_fail \
  "JAX finds no GPU: the driver must be new enough for CUDA 12"
run -m launch.local --workdir="$FOLDER/local"
run -m experiments.benchmarks.loop --output="$FOLDER/loop.json"
run -m experiments.benchmarks.search --shapes=tiny,small \
  --output="$FOLDER/search.json"
echo "results: $FOLDER/local/report.html, $FOLDER/loop.json, $FOLDER/search.json"
