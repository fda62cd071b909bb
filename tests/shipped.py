"""Programs as users compile them, for tests that read what was compiled."""

import jax


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  """With the emitters that tests/conftest.py does without: the text differs."""
  return lowered.compile({"xla_cpu_use_fusion_emitters": True})
