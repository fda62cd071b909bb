#!/usr/bin/env bash
# Installs tsd_jax with its test extras and runs the whole suite.
# Usage: bash launch/test.sh [pytest arguments, as from the repository's root]
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
source "$ROOT/launch/setup_venv.sh"
extras="test,interop,notebook"
# The TPU compiler runs without a TPU, and exists for this platform alone.
[[ "$(uname -sm)" != "Linux x86_64" ]] || extras+=",tpu"
tsd_jax_setup "$extras"
cd "$ROOT"
# An empty -m selects the slow tests too; a later -m of the caller wins.
exec "$VENV/bin/python" -m pytest -m "" "$@"
