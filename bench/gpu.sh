#!/usr/bin/env bash
# On a machine with a GPU: builds, then does the named parts, by default all. Each leaves its results and a log in $OUT.
#   checks    every op, step and deployed network against float64 or the CPU      checks.json
#   steps     times of optimizer steps, for bench/report.py                       steps.json
#   deploy    times of deployed networks, network by network, ditto               deploy-NET.json
#   autotune  the same against max-autotune and TensorRT; minutes for each case   autotune-NET.json
#   psconv    errors and times of pre-defined sparse convolution, layer by layer  psconv.json
#   sanitize  every op under compute-sanitizer: memcheck, racecheck; slow         sanitize-TOOL.json
# deploy:NET and autotune:NET do one network of vgg19, resnet164, densenet40, mobilenet, resnet50.
# Needs python3 with torch, triton, pytest and pytest-benchmark; nvcc, cmake and ninja are used where they are.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu}
mkdir -p "$out"
python3 -m pip install --quiet --no-build-isolation --no-deps --editable . 2>&1 | tee "$out/build.log"
failed=0  # what fails is known at the end: what was measured all the same is worth having
measure() { # NAME, then arguments of pytest
  python3 -m pytest "${@:2}" --benchmark-only --benchmark-json "$out/$1.json" 2>&1 | tee "$out/$1.log" || failed=1
}
for part in ${*:-checks steps deploy autotune psconv sanitize}; do
  nets=${part#*:}
  case $part in
    checks) python3 bench/gpu.py checks --out "$out/checks.json" 2>&1 | tee "$out/checks.log" || failed=1 ;;
    psconv) python3 bench/gpu.py psconv --batches 128 --out "$out/psconv.json" 2>&1 | tee "$out/psconv.log" || failed=1 ;;
    sanitize)
      command -v compute-sanitizer || { echo "gpu.sh: sanitize: no compute-sanitizer here" >&2; failed=1; continue; }
      for tool in memcheck racecheck; do  # without torch's cache every tensor is an allocation, whose ends are seen
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
          python3 bench/gpu.py ops --out "$out/sanitize-$tool.json" 2>&1 | tee "$out/sanitize-$tool.log" || failed=1
      done ;;
    steps) measure steps bench/test_optim.py bench/test_groups.py bench/test_adamw.py ;;
    deploy | deploy:* | autotune | autotune:*)
      test=test_forward && [[ $part == autotune* ]] && test=test_autotuned
      [[ $part == *:* ]] || nets="vgg19 densenet40 mobilenet resnet50 resnet164"
      for net in $nets; do measure "${part%:*}-$net" bench/test_deploy.py -k "$test and $net"; done ;;
    *) echo "gpu.sh: part $part: is none of checks, steps, deploy, autotune, psconv, sanitize" >&2; exit 2 ;;
  esac
done
exit $failed
