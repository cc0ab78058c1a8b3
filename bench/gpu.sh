#!/usr/bin/env bash
# On a machine with a GPU: builds, holds every op and network against float64, measures, and leaves OUT/gpu.json.
# Needs python3 with torch and triton; nvcc, cmake and ninja are used where they are.     bash bench/gpu.sh [OUT]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-runs/gpu}}
mkdir -p "$out"
python3 -m pip install --quiet --no-build-isolation --no-deps --editable . 2>&1 | tee "$out/build.log"
python3 bench/gpu.py --out "$out/gpu.json" 2>&1 | tee "$out/gpu.log"
