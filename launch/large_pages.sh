# Sourced before Python is started: memory in large pages, which takes up to a
# third off a step on a CPU (`tsd_jax/base/large_pages.py`). The C library reads
# the variable when a process starts, so Python cannot set it for itself.

# Adds the tunable to those that are given; a value of it that is given stays.
tsd_jax_large_pages() {
  [[ ":${GLIBC_TUNABLES:-}" == *:glibc.malloc.hugetlb=* ]] ||
    export GLIBC_TUNABLES="${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1"
}
