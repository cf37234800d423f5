#!/usr/bin/env bash
# Runs everything that needs a GPU: kernel timings, benchmarks, GPU tests and sanitizers.
# The time limits of the stages add up to 26 minutes.
# Builds the native library if it is missing. Results go to benchmarks/results/ (or $OUT). If a stage
# fails, the others still run, and the last line names the failed ones.
#
#   benchmarks/gpu/run.sh
#   PYTHON=.venv/bin/python OUT=/tmp/out benchmarks/gpu/run.sh
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
out=${OUT:-benchmarks/results}
mkdir -p "$out"
failed=()

stage() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU is visible to torch"' || exit 1
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "_").lower())')
if ! "$python" -c 'from mfkernels import backend; assert backend.part("cuda").usable' 2>/dev/null; then
  "$python" setup.py -q build_ext --inplace || exit 1
fi
export PYTHONPATH=.:model:tests:benchmarks${PYTHONPATH:+:$PYTHONPATH}
"$python" -m mfkernels

stage kernels timeout 240 "$python" benchmarks/gpu/kernels.py --plain --json "$out/kernels_$gpu.json"
# On SIGINT, pytest still writes the results that it has; on SIGTERM it would not.
stage benchmarks timeout --signal INT "${SECONDS_OF_BENCHMARKS:-900}" "$python" -m pytest -q benchmarks \
  --benchmark-only --device cuda --seconds 0.5 --benchmark-json "$out/$gpu.json"
stage tests timeout 200 "$python" -m pytest -q -m gpu --junitxml "$out/gpu_tests_$gpu.xml" \
  $(grep -lr --include='*.py' 'pytest.mark.gpu' tests)
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    stage "$tool" timeout 120 compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 20 \
      "$python" benchmarks/gpu/sanitize.py
  done
else
  echo "compute-sanitizer is not installed: skipped"
fi

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all stages passed"
