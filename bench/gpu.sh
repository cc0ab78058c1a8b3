#!/usr/bin/env bash
# On a machine with a GPU: builds, then does the named parts, by default all. Each leaves its results and a log in $OUT.
#   checks   every op, step and deployed network against float64 or the CPU       checks.json
#   steps    times of optimizer steps, for bench/report.py                        bench.json
#   deploy   times of deployed networks                                           deploy.json
#   psconv   errors and times of pre-defined sparse convolution, layer by layer   psconv.json
# Needs python3 with torch, triton, pytest and pytest-benchmark; nvcc, cmake and ninja are used where they are.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu}
mkdir -p "$out"
python3 -m pip install --quiet --no-build-isolation --no-deps --editable . 2>&1 | tee "$out/build.log"
failed=0  # what fails is known at the end: what was measured all the same is worth having
for part in ${*:-checks steps deploy psconv}; do
  case $part in
    checks | deploy) command=(python3 bench/gpu.py "$part" --out "$out/$part.json") ;;
    psconv) command=(python3 bench/gpu.py psconv --batches 128 --out "$out/psconv.json") ;;
    steps) command=(python3 -m pytest bench/test_optim.py bench/test_groups.py bench/test_adamw.py
                    --benchmark-only --benchmark-json "$out/bench.json") ;;
    *) echo "gpu.sh: part $part: is none of checks, steps, deploy, psconv" >&2; exit 2 ;;
  esac
  "${command[@]}" 2>&1 | tee "$out/$part.log" || failed=1
done
exit $failed
