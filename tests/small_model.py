"""A model, prompts of several lengths, and a plain forward without a cache."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.base.types import PromptForm, Prompts
from tsd_jax.inference import prefill
from tsd_jax.models.transformer import ModelConfig, Transformer
from tsd_jax.tasks.task import real_tokens

CONFIG = ModelConfig(
  vocab_size=13,
  d_model=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  d_mlp=24,
  qk_norm=True,
)
EOS, PAD, NEVER = 11, 12, 99
PROMPT_BP = np.random.default_rng(0).integers(0, 11, (4, 7)).astype(np.int32)
PROMPT_LENGTH_B = np.array([3, 7, 1, 5])
PROMPT_BP[np.arange(7)[None] >= PROMPT_LENGTH_B[:, None]] = PAD


@functools.cache
def build() -> Transformer:
  """A model none of whose parameters is a zero or a one that hides a bug."""
  # Tests trace this inside jit: the arrays must not be tracers.
  graph, shapes = nnx.split(
    nnx.eval_shape(lambda: Transformer(CONFIG, nnx.Rngs(params=0)))
  )
  rng = np.random.default_rng(1)

  def draw(path, shape):
    mean = 1.0 if "norm" in jax.tree_util.keystr(path) else 0.0
    with jax.ensure_compile_time_eval():
      return jnp.asarray(rng.normal(mean, 0.3, shape.shape), shape.dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, shapes))


@jax.jit
def _plain(tokens_1T):
  model = build()
  positions_1T = jnp.arange(tokens_1T.shape[1])[None]
  x_1TD = model.trunk(tokens_1T, positions_1T).x_RTD
  return model.logits(x_1TD)[0], model.values(x_1TD)[0][0]


def plain(tokens) -> tuple[np.ndarray, np.ndarray]:
  """Logits and V_pi of one sequence, no cache; junk after it is causal."""
  padded = np.zeros((1, 24), np.int32)
  padded[0, : len(tokens)] = tokens
  logits_TV, value_T = _plain(padded)
  return np.asarray(logits_TV)[: len(tokens)], np.asarray(value_T)


def prompt(row: int) -> list[int]:
  return list(PROMPT_BP[row, : PROMPT_LENGTH_B[row]])


def prefilled(prompt_BP, pad_id=None):
  """Prompts through the model, of which some are padded with a token."""
  prompt_BP = jnp.asarray(prompt_BP)
  B, P = prompt_BP.shape
  length_B = jnp.full(B, P)
  if pad_id is not None:
    length_B = jnp.sum(real_tokens(prompt_BP, pad_id), axis=1)
  prompts = Prompts(prompt_BP, length_B, jnp.arange(B))
  return prefill.prefill(build(), prompts, PromptForm(pad_id is not None))


def copies_in_loops(text: str, layer_size: int) -> list[str]:
  """Instructions inside a loop that copy keys of a layer, or of all."""
  sizes = {layer_size, layer_size * CONFIG.num_layers}
  found, in_entry, seen = [], False, 0
  for line in text.splitlines():
    if line.endswith("{"):
      in_entry = line.startswith("ENTRY")
    op = re.search(r"= f32\[([\d,]+)\]\S* ([\w-]+)\(", line)
    if op is None:
      continue
    is_keys = np.prod([int(n) for n in op[1].split(",")]) in sizes
    seen += is_keys
    # The entry may copy the zeros once; that is before the loop.
    if is_keys and not in_entry and re.match("copy|transpose", op[2]):
      found.append(line)
  assert seen, "the compiled text no longer prints shapes as f32[...]"
  return found
