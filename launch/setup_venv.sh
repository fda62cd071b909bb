# Sourced by local.sh, gpu.sh and test.sh: makes a virtual environment and
# installs tsd_jax in it. Needs bash, Python >= 3.11 with venv, and pip's index.
#
#   PYTHON        interpreter to make it with (else the first one found)
#   TSD_JAX_VENV  its folder (else .venv in the checkout)

tsd_jax_fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints MAJOR.MINOR of an interpreter; fails where it is none.
tsd_jax_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

tsd_jax_new_enough() {
  [[ "$1" =~ ^3\.([0-9]+)$ ]] && ((BASH_REMATCH[1] >= 11))
}

# Sets BASE, the interpreter to make the environment with.
tsd_jax_find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11) candidate
  local version found=""
  [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version="$(tsd_jax_version "$candidate")" || continue
    if tsd_jax_new_enough "$version"; then
      BASE="$candidate"
      return
    fi
    found="${found:-, but $candidate is $version}"
  done
  tsd_jax_fail "no Python >= 3.11 (tried ${candidates[*]}${found}):" \
    "install one, or name it with PYTHON=/path/to/python3.11"
}

# Sets LOCK, the folder of exact versions for an interpreter, or "".
tsd_jax_lock() {
  case "$1" in
    3.11) LOCK="$ROOT/constraints/hashes/py311" ;;
    3.12 | 3.13) LOCK="$ROOT/constraints/hashes/py313" ;;
    *) LOCK="" ;;
  esac
}

# Prints what an installation depends on, for interpreter version $1.
tsd_jax_fingerprint() {
  tsd_jax_lock "$1"
  local files=("$ROOT/setup.py" "$ROOT/pyproject.toml")
  [[ -z "$LOCK" ]] || files+=("$LOCK"/*.txt)
  echo "$1 $ROOT $(cat "${files[@]}" | cksum)"
}

# Succeeds if the environment has all extras of $1 (comma list) as of now.
tsd_jax_is_ready() {
  local version fingerprint extras extra
  [[ -x "$VENV/bin/python" && -f "$VENV/$STAMP" ]] || return 1
  { read -r version && read -r fingerprint && read -r extras; } \
    <"$VENV/$STAMP" || return 1
  [[ "$fingerprint" == "$(tsd_jax_fingerprint "$version")" ]] || return 1
  if [[ -n "${PYTHON:-}" ]]; then
    [[ "$(tsd_jax_version "$PYTHON")" == "$version" ]] || return 1
  fi
  for extra in ${1//,/ }; do
    [[ ",$extras," == *",$extra,"* ]] || return 1
  done
}

# Makes an empty environment in VENV, in place of a broken or half-made one.
tsd_jax_make_venv() {
  tsd_jax_find_python
  "$BASE" -c 'import ensurepip, venv' 2>/dev/null || tsd_jax_fail \
    "$BASE cannot make virtual environments; install its venv module" \
    "(on Debian or Ubuntu: apt-get install python3-venv), or name another" \
    "interpreter with PYTHON=/path/to/python3.11"
  # What was not made here may be somebody's own environment.
  if [[ ! -f "$VENV/$MARK" && -n "$(ls -A "$VENV" 2>/dev/null)" ]]; then
    tsd_jax_fail "$VENV holds files that no script of launch/ has put there;" \
      "delete it, or name a new folder with TSD_JAX_VENV=FOLDER"
  fi
  mkdir -p "$VENV" 2>/dev/null && touch "$VENV/$MARK" 2>/dev/null ||
    tsd_jax_fail "cannot write to $VENV; name another with TSD_JAX_VENV=FOLDER"
  find "$VENV" -mindepth 1 -maxdepth 1 ! -name "$MARK" -exec rm -rf {} +
  "$BASE" -m venv "$VENV" >"$VENV/install.log" 2>&1 || tsd_jax_fail \
    "$BASE could not make a virtual environment in $VENV; its words are in" \
    "$VENV/install.log"
}

# Installs the project with the extras of $1 (comma list): first what it needs,
# each file with the SHA-256 sum that LOCK has of it, then itself.
tsd_jax_install() {
  local pip=("$VENV/bin/python" -m pip install) extra
  if [[ -z "$LOCK" ]]; then
    "${pip[@]}" --editable "$ROOT${1:+[$1]}"
    return
  fi
  # What builds is checked too: pip checks no sum of what it isolates.
  local own=(--no-build-isolation --use-pep517)
  local checked=("${pip[@]}" "${own[@]}" --require-hashes -r "$LOCK/base.txt")
  for extra in ${1//,/ }; do
    checked+=(-r "$LOCK/$extra.txt")
  done
  "${pip[@]}" --require-hashes -r "$LOCK/build.txt" || return
  if [[ ",$1," != *,interop,* ]]; then
    "${checked[@]}" || return
  # PyPI itself has torch for CUDA alone, which needs 3 GB more.
  elif [[ ! -f "$LOCK/torch_cpu.txt" ]] ||
    ! "${checked[@]}" -r "$LOCK/torch_cpu.txt"; then
    "${checked[@]}" -r "$LOCK/torch_cuda.txt" || return
  fi
  "${pip[@]}" "${own[@]}" --no-deps --editable "$ROOT"
}

# Makes sure that VENV holds tsd_jax with the extras of $1 (comma list).
tsd_jax_setup() {
  local extras="$1" version reason
  VENV="${TSD_JAX_VENV:-$ROOT/.venv}"
  STAMP=.tsd_jax_installed
  MARK=.tsd_jax_venv
  ! tsd_jax_is_ready "$extras" || return 0
  # Without a stamp an earlier call was cut short: nothing in it is certain.
  version=""
  if [[ -f "$VENV/$STAMP" ]]; then
    version="$(tsd_jax_version "$VENV/bin/python")" || version=""
    if [[ -n "${PYTHON:-}" && "$(tsd_jax_version "$PYTHON")" != "$version" ]]; then
      version=""
    fi
    extras="$extras,$(sed -n 3p "$VENV/$STAMP")"
  fi
  [[ -n "$version" ]] || tsd_jax_make_venv
  # Not as of now, from here on; but no reason to begin from nothing.
  if [[ -f "$VENV/$STAMP" ]]; then
    sed -i.old 2s/.*/unfinished/ "$VENV/$STAMP" && rm "$VENV/$STAMP.old"
  fi
  version="$(tsd_jax_version "$VENV/bin/python")" ||
    tsd_jax_fail "$VENV/bin/python does not run; delete $VENV and try again"
  extras="$(tr ',' '\n' <<<"$extras" | sed '/^$/d;/^none$/d' | sort -u | paste -sd, -)"
  tsd_jax_lock "$version"
  [[ -n "$LOCK" ]] ||
    echo "no versions locked for Python $version: installing the newest" >&2
  echo "installing tsd_jax in $VENV (log: $VENV/install.log)" >&2
  if ! tsd_jax_install "$extras" >"$VENV/install.log" 2>&1 </dev/null; then
    reason="$(grep '^ERROR' "$VENV/install.log" | tail -n 1 | cut -c 1-200)"
    tsd_jax_fail "pip could not install tsd_jax (${reason:-no reason given});" \
      "check the network, pip's index settings and the free disk space, then" \
      "run this again; log: $VENV/install.log"
  fi
  printf '%s\n%s\n%s\n' "$version" "$(tsd_jax_fingerprint "$version")" \
    "${extras:-none}" >"$VENV/$STAMP.new"
  mv "$VENV/$STAMP.new" "$VENV/$STAMP"
}
