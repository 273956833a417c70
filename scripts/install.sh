#!/usr/bin/env bash
# Make .venv and install svdcut into it, with the extras named: install.sh plot,dev
#
# Plain pip may take a CUDA build of torch, gigabytes that a machine without a GPU has no
# use for. Where it would, and there is no GPU, uv fetches the CPU build instead.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}
torch=torch==2.13.0
python=.venv/bin/python

wants_cuda() {
  $python -m pip install --quiet --dry-run --no-deps --report - $torch 2>/dev/null | $python -c '
import json, sys
metadata = json.load(sys.stdin)["install"][0]["metadata"]
sys.exit(not any("nvidia" in need or "cuda" in need for need in metadata.get("requires_dist", [])))'
}

[ -x $python ] || "${PYTHON:-python3}" -m venv .venv
if ! $python -c 'import torch' 2>/dev/null; then
  if ! command -v nvidia-smi >/dev/null && wants_cuda; then
    $python -m pip install --quiet uv
    $python -m uv pip install --quiet --python $python --torch-backend cpu $torch
  else
    $python -m pip install --quiet $torch
  fi
fi
$python -m pip install --quiet --editable ".${extras:+[$extras]}"
