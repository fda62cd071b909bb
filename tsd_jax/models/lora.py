"""Low-rank adapters: few trained numbers beside weights that stay.

  W' = W + (alpha / r) A B                                  (arXiv:2106.09685)

A weight is merged where it is used, so that search, rollouts and the loss read
a plain model, and what is exported is one. The value outputs, which no
published model has, are trained whole.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tsd_jax.base.types import Array
from tsd_jax.models import transformer

# How many axes of a weight, after the layers', it reads along; A keeps their
# letters and B those of the others, with X for the rank between, so that the
# table of shardings knows them.
_READS = {
  "query_LDHE": 1,
  "key_LDKE": 1,
  "value_LDKE": 1,
  "output_LHED": 2,
  "gate_LDF": 1,
  "up_LDF": 1,
  "down_LFD": 1,
}
_TRAINED_AS_THEY_ARE = ("value_hidden_2DD", "value_output_2D", "value_bias_2")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Adapters of every projection of every layer."""

  rank: int = 0  # r; 0 trains all weights instead.
  alpha: float = 16.0

  def __post_init__(self):
    """Refuses impossible settings."""
    if self.rank < 0:
      raise ValueError(f"lora.rank={self.rank} must be >= 0")
    if not 0 < self.alpha < math.inf:
      raise ValueError(
        f"lora.alpha={self.alpha} must be positive, and be finite"
      )


NO_ADAPTERS = LoraConfig()  # All weights are trained.


def init(params: Any, config: LoraConfig, key: Array) -> dict[str, Any]:
  """What is trained instead of the parameters; at first it changes nothing.

  Args:
    params: the parameters that stay.
    config: the rank.
    key: random key, consumed.

  Returns:
    By name, a pair A (normal, variance 1/fan-in) and B (zero) for a projection,
    or the value outputs themselves.
  """
  trained: dict[str, Any] = {}
  for path, leaf in nnx.to_flat_state(params):
    name, weight = str(path[-1]), leaf.get_value()
    if name in _TRAINED_AS_THEY_ARE:
      trained[name] = weight
    elif name in _READS:
      key, own = jax.random.split(key)
      stem, letters = name.rsplit("_", 1)
      cut = 1 + _READS[name]
      layers, reads, writes = (
        weight.shape[:1],
        weight.shape[1:cut],
        weight.shape[cut:],
      )
      shape = (*layers, *reads, config.rank)
      a = jax.random.normal(own, shape) / math.sqrt(math.prod(reads))
      trained[stem] = {
        f"a_{letters[:cut]}X": a,
        f"b_LX{letters[cut:]}": jnp.zeros((*layers, config.rank, *writes)),
      }
  return trained


def count(model: transformer.ModelConfig, config: LoraConfig) -> int:
  """How many numbers are trained."""
  trained = jax.eval_shape(
    lambda params: init(params, config, jax.random.key(0)),
    transformer.abstract(model)[1],
  )
  return sum(math.prod(a.shape) for a in jax.tree.leaves(trained))


def merge(params: Any, trained: dict[str, Any], config: LoraConfig) -> Any:
  """The parameters of a plain model.

  Args:
    params: those that stay.
    trained: of `init`, or what training made of it.
    config: the same as there.

  Returns:
    Parameters of the same structure as `params`.
  """
  merged = []
  for path, leaf in nnx.to_flat_state(params):
    name, weight = str(path[-1]), leaf.get_value()
    if name in _TRAINED_AS_THEY_ARE:
      weight = trained[name]
    elif name in _READS:
      a, b = (
        pair[1] for pair in sorted(trained[name.rsplit("_", 1)[0]].items())
      )
      L, rank = weight.shape[0], config.rank
      change = jnp.matmul(a.reshape(L, -1, rank), b.reshape(L, rank, -1))
      weight = weight + (config.alpha / rank) * change.reshape(weight.shape)
    merged.append((path, leaf.replace(weight)))
  return nnx.from_flat_state(merged)
