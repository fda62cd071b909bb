#!/usr/bin/env bash
# Installs tsd_jax on a fresh machine and runs the default experiment.
# Usage: bash launch/local.sh [flags of launch/local.py]
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
source "$ROOT/launch/setup_venv.sh"
tsd_jax_setup ""
source "$ROOT/launch/large_pages.sh"
tsd_jax_large_pages
# -P: a folder named `launch` where the user stands is not this one.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$VENV/bin/python" -P -m launch.local "$@"
