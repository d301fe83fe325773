#!/usr/bin/env bash
# All that `ofp-vla bench` measures at the published size, in under six minutes on a bare machine with a GPU.
#
#     bash benchmarks/gpu.sh OUTPUT [WHEELS]
#
# The machine needs a Python with PyTorch for its GPU. WHEELS is a folder of wheels of what else is missing there,
# LeRobot 0.6.1 above all (`pip download --no-deps`, versions as in requirements.lock); without one, what is installed is
# used. Nothing is downloaded. Rows that OUTPUT holds already are not measured again, so a call that was cut off is
# repeated as it was. The table comes last; OUTPUT/bench.html and OUTPUT/bench.json are to be kept.
#
# SECONDS_MAIN, SECONDS_COMPILED: time for everything but LeRobot's compiled sampler, and for that: its ten steps are one
# graph of tens of thousands of operators, which takes many minutes to compile, so it is left out by default. PYTHON: which.
# OFP_COMMIT: the commit, where this folder is a copy without its history. SIZE=tiny tries this file without a GPU.
set -euo pipefail
output=$(realpath -m "${1:?usage: bash benchmarks/gpu.sh OUTPUT [WHEELS]}")
wheels=${2:-}
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [[ -n $wheels ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$root:$site:$PYTHONPATH"
fi
mkdir -p "$output"

# A process of its own for what compiles for minutes: if it is ended, the rest is written.
bench() {
    local seconds=$1
    shift
    timeout --signal=INT --kill-after=20 "$((seconds + 45))" "$python" -m ofp_vla.cli.main bench \
        --random-init --size "${SIZE:-full}" --seconds "$seconds" --output "$output" "$@" 2>&1 |
        tee -a "$output/bench.log" | grep --line-buffered -v '^{' || echo "bench $* ended early; what it measured is kept"
}

bench "${SECONDS_MAIN:-300}"
[[ ${SECONDS_COMPILED:-0} == 0 ]] ||
    bench "$SECONDS_COMPILED" --parts acting --batches 1 --compile-mode "${COMPILE_MODE:-default}" --only compiled
"$python" -m ofp_vla.cli.main bench --show "$output"
