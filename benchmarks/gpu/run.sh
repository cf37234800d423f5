#!/usr/bin/env bash
# Everything that needs a GPU, in one call well inside ten minutes: build or reuse the native library,
# GPU tests, compute-sanitizer on small cases, benchmarks. Writes JSON to benchmarks/results/ (or $OUT).
#
#   benchmarks/gpu/run.sh            builds where the library is missing
#   PYTHON=.venv/bin/python OUT=/tmp/out benchmarks/gpu/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
out=${OUT:-benchmarks/results}
mkdir -p "$out"

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU is visible to torch"'
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_"))')

echo "== build"
if ! "$python" -c 'from mfkernels import backend; assert backend.part("cuda").usable' 2>/dev/null; then
  "$python" setup.py -q build_ext --inplace
fi
PYTHONPATH=.:model "$python" -m mfkernels
export PYTHONPATH=.:model:tests:benchmarks

echo "== tests"
"$python" -m pytest -q -m gpu tests --junitxml "$out/gpu_tests_$gpu.xml"

echo "== compute-sanitizer"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" benchmarks/gpu/sanitize.py \
      | tee "$out/sanitizer_${tool}_$gpu.txt"
  done
else
  echo "compute-sanitizer is not installed: skipped"
fi

echo "== benchmarks"
"$python" -m pytest benchmarks --benchmark-only --device cuda --benchmark-json "$out/$gpu.json"
