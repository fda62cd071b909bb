"""One table of names: ours, Hugging Face's and GGUF's, read in both ways.

Theirs are one matrix of [outputs, inputs] a layer; ours have an axis a
meaning, and all layers stacked on the first. Value outputs, which nobody else
knows, are not in the table.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from tsd_jax.models import weights
from tsd_jax.models.transformer import ModelConfig

Dialect = Literal["hf", "gguf"]


class _Names(NamedTuple):
  hf: str
  gguf: str
  inputs: int  # Leading axes of ours (after L) that are inputs; 0: same order.


_TABLE = {
  "embedding_VD": _Names("model.embed_tokens.weight", "token_embd.weight", 0),
  "final_norm_D": _Names("model.norm.weight", "output_norm.weight", 0),
  "unembedding_VD": _Names("lm_head.weight", "output.weight", 0),
  "attention_norm_LD": _Names("input_layernorm.weight", "attn_norm.weight", 0),
  "query_LDHE": _Names("self_attn.q_proj.weight", "attn_q.weight", 1),
  "key_LDKE": _Names("self_attn.k_proj.weight", "attn_k.weight", 1),
  "value_LDKE": _Names("self_attn.v_proj.weight", "attn_v.weight", 1),
  "output_LHED": _Names("self_attn.o_proj.weight", "attn_output.weight", 2),
  "query_bias_LHE": _Names("self_attn.q_proj.bias", "attn_q.bias", 0),
  "key_bias_LKE": _Names("self_attn.k_proj.bias", "attn_k.bias", 0),
  "value_bias_LKE": _Names("self_attn.v_proj.bias", "attn_v.bias", 0),
  "query_norm_LE": _Names("self_attn.q_norm.weight", "attn_q_norm.weight", 0),
  "key_norm_LE": _Names("self_attn.k_norm.weight", "attn_k_norm.weight", 0),
  "mlp_norm_LD": _Names(
    "post_attention_layernorm.weight", "ffn_norm.weight", 0
  ),
  "gate_LDF": _Names("mlp.gate_proj.weight", "ffn_gate.weight", 1),
  "up_LDF": _Names("mlp.up_proj.weight", "ffn_up.weight", 1),
  "down_LFD": _Names("mlp.down_proj.weight", "ffn_down.weight", 1),
}
_LAYER_PREFIX = {"hf": "model.layers.{}.", "gguf": "blk.{}."}


class Piece(NamedTuple):
  """One tensor of theirs, and where it goes in ours."""

  ours: str  # Dotted name.
  layer: int | None  # Index on the first axis of ours; None: all of ours.
  theirs: str
  shape: tuple[int, ...]  # Of ours, one layer.
  inputs: int

  @property
  def their_shape(self) -> tuple[int, ...]:
    """[outputs, inputs] of a matrix; vectors are flat."""
    if self.inputs:
      width = int(np.prod(self.shape[: self.inputs]))
      return int(np.prod(self.shape[self.inputs :])), width
    return self.shape if self.layer is None else (int(np.prod(self.shape)),)

  def to_theirs(self, array: np.ndarray) -> np.ndarray:
    """One layer of ours, in their layout."""
    if not self.inputs:
      return array.reshape(self.their_shape)
    return array.reshape(self.their_shape[::-1]).T

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """Their tensor in our layout: a view, nothing is copied."""
    return (array.T if self.inputs else array).reshape(self.shape)


def pieces(config: ModelConfig, dialect: Dialect) -> Iterator[Piece]:
  """Yields all tensors of a shape, ours by ours, layer by layer."""
  for ours, shape in weights.named_shapes(config).items():
    if is_value(ours):
      continue
    stacked = ours.startswith("layers.")
    names = _TABLE[ours.removeprefix("layers.")]
    theirs = getattr(names, dialect)
    if not stacked:
      yield Piece(ours, None, theirs, shape, names.inputs)
      continue
    for i in range(config.num_layers):
      name = _LAYER_PREFIX[dialect].format(i) + theirs
      yield Piece(ours, i, name, shape[1:], names.inputs)


def is_value(ours: str) -> bool:
  """Whether a parameter belongs to the value outputs."""
  return ours.startswith("value_")
