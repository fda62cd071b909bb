"""Entry points: each module parses flags and calls into tsd_jax."""
