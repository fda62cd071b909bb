"""What a policy says after any beginning of an answer, computed once.

Searches of many prompts ask for the same prefixes again and again. Here each is
run through the model one time, one new token after the stored keys of the
tokens before it, in batches of a fixed shape. What a search pays is counted by
the search itself (`searches.run`), so that sharing changes no count.

S is the length of a prompt with its answer; X are the numbers that make up one
position's keys and values.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsd_jax.base.types import Prompts
from tsd_jax.inference.prefill import prefill
from tsd_jax.models.transformer import KV, Segment

Path = tuple[int, ...]  # Response tokens.

# Rows of a call: the smallest that will do, else several calls of the largest.
_ROWS = (32, 256)


def _pack(kv: KV):
  """Keys and values of [L, R, K, S, E] as rows of numbers, RSX."""
  packed = jnp.asarray(kv).transpose(2, 4, 0, 1, 3, 5)
  return packed.reshape(*packed.shape[:2], -1)


@functools.partial(jax.jit, static_argnames="graphdef")
def _prefill(graphdef, params, prompts: Prompts):
  """Log-probabilities of the first token, and the prompts' keys."""
  model = nnx.merge(graphdef, params)
  prefix = prefill(model, prompts)
  log_prob_BV = jax.nn.log_softmax(model.logits(prefix.x_BD))
  (prompt,) = prefix.segments
  return log_prob_BV, _pack(prompt.kv)


@functools.partial(jax.jit, static_argnames="graphdef")
def _forward(graphdef, params, token_R, position_R, past_RSX, mask_RS):
  """Log-probabilities after one token more, and its own keys."""
  model = nnx.merge(graphdef, params)
  c = model.config
  R, S = mask_RS.shape
  past = past_RSX.reshape(R, S, 2, c.num_layers, c.num_kv_heads, c.head_dim)
  past = Segment(KV(*past.transpose(2, 3, 0, 4, 1, 5)), mask_RS[:, None])
  hidden = model.trunk(token_R[:, None], position_R[:, None], segments=[past])
  log_prob_RV = jax.nn.log_softmax(model.logits(hidden.x_RTD[:, 0]))
  return log_prob_RV, _pack(hidden.kv)[:, 0]


class Prefixes:
  """Log-probabilities of the next token after a prompt and a path.

  Position i of the store holds one token's keys and what the model says after
  it; a prompt's positions come first. `index` finds a path's last position,
  `chain` the positions of the whole prefix.
  """

  def __init__(self, graphdef, params, prompts: Prompts, response_length: int):
    """Runs the prompts.

    Args:
      graphdef: structure of the model.
      params: its parameters.
      prompts: as many as wanted, all of P tokens.
      response_length: the longest path.
    """
    self._model = graphdef, params
    Q, P = prompts.tokens_BP.shape
    self._prompt_length, self._length = P, P + response_length
    log_prob_QV, kv_QPX = jax.device_get(_prefill(*self._model, prompts))
    self._kv = kv_QPX.reshape(Q * P, -1)
    self._log_prob = np.repeat(log_prob_QV, P, axis=0)
    self._chain = np.full((Q * P, self._length), -1, np.int32)
    self._chain[:, :P] = np.arange(Q * P).reshape(Q, P).repeat(P, axis=0)
    self._roots = {(n, ()): n * P + P - 1 for n in range(Q)}
    self._index = dict(self._roots)
    self._used = Q * P

  def __len__(self) -> int:
    """Positions stored, those of the prompts included."""
    return self._used

  def forget(self, limit: int) -> None:
    """Forgets all paths if there are more than `limit` positions."""
    if self._used > limit:
      self._index = dict(self._roots)
      self._used = len(self._roots) * self._prompt_length

  def log_probs(self, asked: Sequence[tuple[int, Path]]) -> list[np.ndarray]:
    """Looks prefixes up, and runs the model on those that are new.

    Args:
      asked: prompt and path of each.

    Returns:
      float32 V each, views that the caller must not change.
    """
    missing = {}
    for prompt, path in asked:
      while (prompt, path) not in self._index and (prompt, path) not in missing:
        missing[prompt, path] = len(path)
        path = path[:-1]
    by_depth = {}
    for key, depth in missing.items():
      by_depth.setdefault(depth, []).append(key)
    for depth in sorted(by_depth):
      keys = by_depth[depth]
      for start in range(0, len(keys), _ROWS[-1]):
        self._run(keys[start : start + _ROWS[-1]], depth)
    return [self._log_prob[self._index[key]] for key in asked]

  def _run(self, keys, depth):
    """Runs one batch of paths of one depth, whose parents are there."""
    count = len(keys)
    rows = next(r for r in _ROWS if count <= r)
    self._reserve(count)
    parent = [self._index[prompt, path[:-1]] for prompt, path in keys]
    at = self._prompt_length + depth - 1
    new = np.arange(self._used, self._used + count)
    chain_RS = self._chain[parent]

    token_R = np.zeros(rows, np.int32)
    token_R[:count] = [path[-1] for _, path in keys]
    padded_RS = np.zeros((rows, self._length), np.int32)
    padded_RS[:count] = np.maximum(chain_RS, 0)
    mask_RS = np.broadcast_to(np.arange(self._length) < at, padded_RS.shape)
    log_prob_RV, kv_RX = _forward(
      *self._model,
      token_R,
      np.full(rows, at, np.int32),
      self._kv[padded_RS],
      mask_RS,
    )
    chain_RS[:, at] = new
    self._chain[new] = chain_RS
    self._log_prob[new] = np.asarray(log_prob_RV)[:count]
    self._kv[new] = np.asarray(kv_RX)[:count]
    self._index.update(zip(keys, new.tolist(), strict=True))
    self._used += count

  def _reserve(self, count):
    """Doubles the store where it is full."""
    if self._used + count <= len(self._kv):
      return
    more = max(self._used, count)
    for name in ("_kv", "_log_prob", "_chain"):
      old = getattr(self, name)
      new = np.empty((len(old) + more, old.shape[1]), old.dtype)
      new[: len(old)] = old
      setattr(self, name, new)
    self._chain[-more:] = -1
