#!/usr/bin/env bash
# Runs on every worker of a TPU slice; `launch/tpu_pod.py` calls it. State lies
# in ~/tsd_jax: src (the code), venv, log, pid, and rc once the run has ended.
#
#   install          makes the environment, Python included where it is missing
#   start ARGS...    runs `python ARGS...` detached from this connection
#   follow LINE      prints the log from a line on until the run ends
#   result           prints the run's exit code, then the end of its log
#   interrupt        asks the run to save and stop
set -euo pipefail
BASE="$HOME/tsd_jax"
ROOT="$BASE/src"
export TSD_JAX_VENV="$BASE/venv"

alive() {
  [[ -f "$BASE/pid" ]] && kill -0 "$(<"$BASE/pid")" 2>/dev/null
}

case "$1" in
  install)
    # TPU images may come with an older Python.
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' &&
      ! command -v python3.11 >/dev/null; then
      sudo DEBIAN_FRONTEND=noninteractive apt-get update -qq
      sudo DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq python3.11 python3.11-venv
    fi
    source "$ROOT/launch/setup_venv.sh"
    tsd_jax_setup tpu
    ;;
  start)
    if alive; then
      echo "a run is going on here: follow it, or interrupt it first" >&2
      exit 1
    fi
    rm -f "$BASE/rc" "$BASE/pid"
    cd "$ROOT"
    source launch/large_pages.sh
    tsd_jax_large_pages
    # A new session: the run outlives the connection that starts it.
    setsid bash -c '"$@"; echo $? >"$0.new"; mv "$0.new" "$0"' "$BASE/rc" \
      "$TSD_JAX_VENV/bin/python" "${@:2}" >"$BASE/log" 2>&1 </dev/null &
    echo $! >"$BASE/pid"
    ;;
  follow)
    tail -n "+$2" --follow=name --sleep-interval=1 \
      --pid="$(<"$BASE/pid")" "$BASE/log"
    ;;
  result)
    # Workers end seconds apart: one that still runs is given time.
    for ((i = 0; i < ${TSD_JAX_PATIENCE:-120}; i++)); do
      [[ ! -f "$BASE/rc" ]] && alive || break
      sleep 1
    done
    cat "$BASE/rc" 2>/dev/null || { alive && echo running || echo lost; }
    tail -n 20 "$BASE/log"
    ;;
  interrupt)
    # The wrapper stays, to write down how the run ended.
    ! alive || pkill -TERM -P "$(<"$BASE/pid")"
    ;;
  *)
    echo "unknown step: $1" >&2
    exit 2
    ;;
esac
