#!/usr/bin/env bash
# Make .venv and install svdcut into it, with the extras named: install.sh plot,dev
#
# Plain pip takes a CUDA build of torch on Linux, gigabytes that a machine without a
# GPU has no use for; there, uv fetches the CPU build instead.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}
torch=torch==2.13.0
python=.venv/bin/python

[ -x $python ] || "${PYTHON:-python3}" -m venv .venv
if ! $python -c 'import torch' 2>/dev/null; then
  wants_cuda=$($python -m pip install --quiet --dry-run --no-deps --report - $torch |
    $python -c 'import json, sys; print("nvidia" in str(json.load(sys.stdin)["install"][0]["metadata"]))')
  if [ "$wants_cuda" = True ] && ! command -v nvidia-smi >/dev/null; then
    $python -m pip install --quiet uv
    $python -m uv pip install --quiet --python $python --torch-backend cpu $torch
  else
    $python -m pip install --quiet $torch
  fi
fi
$python -m pip install --quiet --editable ".${extras:+[$extras]}"
