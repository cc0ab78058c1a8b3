#!/usr/bin/env bash
# On a machine with a GPU: builds; holds every op, step and network against float64 or the CPU (gpu.json, times of deployed
# networks too); times optimizer steps (bench.json, for bench/report.py).                          bash bench/gpu.sh [OUT]
# Needs python3 with torch, triton, pytest and pytest-benchmark; nvcc, cmake and ninja are used where they are.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-runs/gpu}}
mkdir -p "$out"
python3 -m pip install --quiet --no-build-isolation --no-deps --editable . 2>&1 | tee "$out/build.log"
failed=0  # a failed check is known at the end: what was measured all the same is worth having
python3 bench/gpu.py --out "$out/gpu.json" 2>&1 | tee "$out/gpu.log" || failed=1
python3 -m pytest bench/test_optim.py bench/test_groups.py bench/test_adamw.py --benchmark-only \
  --benchmark-json "$out/bench.json" 2>&1 | tee "$out/bench.log" || failed=1
exit $failed
