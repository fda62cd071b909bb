#!/usr/bin/env bash
# Installs tsd_jax with its test extras and runs the whole suite.
# Usage: bash launch/test.sh [pytest arguments, as from the repository's root]
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
source "$ROOT/launch/setup_venv.sh"
# TSD_JAX_EXTRAS=tpu adds the TPU compiler (Linux; it needs no TPU) for the
# tests that are skipped without it, and TSD_JAX_EXTRAS=browser what drives the
# system's Chromium, if there is one. No test is skipped for the lack of others.
export TSD_JAX_INSTALLED="test,interop,notebook,verify${TSD_JAX_EXTRAS:+,$TSD_JAX_EXTRAS}"
tsd_jax_setup "$TSD_JAX_INSTALLED"
cd "$ROOT"
# An empty -m selects the slow tests too; a later -m or -n of the caller wins.
# Two files at a time: the compiler uses little more than one core.
# In the order of tests/conftest.py: files with slow tests first.
exec "$VENV/bin/python" -m pytest -m "" -n 2 --dist loadfile \
  --no-loadscope-reorder "$@"
