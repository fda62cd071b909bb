"""Operations that a token takes: the one definition that all figures share."""

from tsd_jax.models.transformer import ModelConfig


def flops_per_token(model: ModelConfig, context: float = 0) -> float:
  """Operations of a token's forward: of matrices, and of scores if asked for.

  2 for each weight that multiplies it, the output table included, and 4 for
  each feature of each head and each position that it attends to. Norms, softmax
  and the value outputs are left out: XLA counts 12 % more for a step of
  sampling with the tiny model (`tests/ledger_test.py`).

  Args:
    model: the shape.
    context: positions that it attends to, in the mean; 0 leaves scores out.
  """
  c = model
  features = c.num_heads * c.head_dim
  projections = 2 * features + 2 * c.num_kv_heads * c.head_dim
  layer = c.d_model * (projections + 3 * c.d_mlp)
  weights = c.num_layers * layer + c.vocab_size * c.d_model
  return 2 * weights + 4 * c.num_layers * features * context
