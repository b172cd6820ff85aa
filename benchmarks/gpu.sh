#!/usr/bin/env bash
# Everything that needs a GPU, in one command, on a bare machine: python3 with torch, triton and numpy.
#
#     bash benchmarks/gpu.sh OUT_DIR [--device cpu --tiny]
#
# Kernel tests, speed of the kernels, speed and memory of training and sampling. Writes JSON, CSV and logs to OUT_DIR;
# exits non-zero if anything failed. Takes at most 8 minutes. Nothing is installed, no network is needed.
#
# Not yet run on a GPU: no machine with one was at hand when this was written. `--device cpu --tiny` is what is tested.
set -euo pipefail

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: bash benchmarks/gpu.sh OUT_DIR [--device cpu --tiny]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
failed=()

# stage NAME SECONDS COMMAND...
stage() {
    local name=$1 limit=$2 start=$SECONDS rc=0
    shift 2
    echo "==> $name"
    timeout -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.log" || rc=$?
    echo "==> $name: exit status $rc after $((SECONDS - start)) s"
    [ "$rc" -eq 0 ] || failed+=("$name")
}

# The plain checks always run; the tests say more, where pytest and hypothesis are installed. Their settings in
# pyproject.toml name plugins that may be missing here: addopts is emptied because it makes that an error.
if [[ " $* " == *" --tiny "* ]]; then
    echo "==> tests: left to pytest"
elif python3 -c 'import pytest, hypothesis' 2>/dev/null; then
    stage tests 120 python3 -m pytest tests/ops --ignore tests/ops/test_aot.py -o addopts= -p no:cacheprovider -q
else
    echo "==> tests: pytest or hypothesis is not installed; gpu_check.py stands in"
fi
stage masked_l1 40 python3 benchmarks/gpu_check.py --out "$out/masked_l1.json" "$@"
stage pbc 90 python3 benchmarks/gpu_pbc.py --out "$out/pbc.json" "$@"
stage steps 40 python3 benchmarks/gpu_steps.py --out "$out/steps.json" "$@"
stage row_norm 50 python3 benchmarks/gpu_row_norm.py --out "$out/row_norm.json" "$@"
stage train 130 python3 benchmarks/gpu_train.py --out "$out/train.json" "$@"

if [ ${#failed[@]} -gt 0 ]; then
    echo "==> FAILED: ${failed[*]}" >&2
    exit 1
fi
echo "==> all passed in $SECONDS s; results in $out"
