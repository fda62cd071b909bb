"""A search's pools of keys against plain full forwards."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import shipped
from tests.small_model import (
  CONFIG,
  NEVER,
  PAD,
  PROMPT_BP,
  build,
  copies_in_loops,
  plain,
  prefilled,
  prompt,
)
from tsd_jax.inference import prefill, sampling
from tsd_jax.search import kv_pool

pytestmark = pytest.mark.usefixtures("strict_ranks")


# Nodes, and the most tokens of a path.
NODES, WIDTH = 9, 7


def random_parents() -> np.ndarray:
  """Parent slot of each node and tree, NODES standing for the root."""
  rng = np.random.default_rng(7)
  parent_NB = np.empty((NODES, 4), np.int32)
  for b in range(4):
    depth = {NODES: 0}
    for n in range(NODES):
      choices = [p for p in depth if depth[p] < WIDTH]
      parent_NB[n, b] = rng.choice(choices)
      depth[n] = depth[parent_NB[n, b]] + 1
  return parent_NB


PARENT_NB = random_parents()
TOKEN_NB = np.random.default_rng(8).integers(0, 11, (NODES, 4)).astype(np.int32)


class ReadFirstPool(kv_pool.KVPool):
  """The order of reading and writing that `KVPool` avoids."""

  def forward(
    self, model, step_B1, length_B, position_B, prompt, slots_BT, depth_B
  ):
    read, seen_B1S = self._reading(slots_BT, depth_B[:, None] - 1)
    mask_B1S = jnp.pad(seen_B1S, ((0, 0), (0, 0), (0, 1)), constant_values=True)

    def memory(layer, *new):
      pieces = []
      for (ref,), new_BK1E in zip(self._refs, new, strict=True):
        old_BKSE = read(ref[...][layer])
        pieces.append(jnp.concatenate([old_BKSE, new_BK1E], axis=2))
        ref[...] = self._written(ref[...], new_BK1E, layer)
      return *pieces, mask_B1S

    x_B1D = model.trunk(
      step_B1, position_B[:, None], segments=prompt, memory=memory
    ).x_RTD
    return x_B1D[:, 0]


def gathering(*args, **kwargs):
  """A pool whose paths are gathered, as in trees of more nodes."""
  with mock.patch.object(kv_pool, "IN_PLACE", 0):
    return kv_pool.KVPool(*args, **kwargs)


POOLS = (kv_pool.KVPool, gathering)


def grow(pool_type, written):
  """Builds all nodes through the pool and decodes greedily below each."""
  model = build()
  prefix = prefilled(PROMPT_BP, PAD)
  if written:
    model = nnx.clone(model)
    model.config = dataclasses.replace(CONFIG, unroll_decode=True)
    model = model.written_out()
    past = prefill.unstacked(model, prefix.segments)
    prefix = prefix._replace(segments=past)
  pool = pool_type(model, 4, NODES, path=WIDTH)
  rows = jnp.arange(4)

  def body(n, state):
    slots_NBD, depth_NB, logits_NBV, tokens_NBT, _ = state
    parent_B = jnp.asarray(PARENT_NB)[n]
    depth_B = depth_NB[parent_B, rows] + 1
    slots_BT = slots_NBD[parent_B, rows].at[rows, depth_B].set(n)
    x_BD = pool.forward(
      model, jnp.asarray(TOKEN_NB)[n][:, None], jnp.ones_like(depth_B),
      prefix.length_B + depth_B, prefix.segments, slots_BT, depth_B,
    )  # fmt: skip
    below = sampling.sample(
      model,
      prefill.Prefix(prefix.segments, prefix.length_B + depth_B + 1, x_BD),
      None,
      length=3,
      end_ids=(NEVER,),
      pad_id=PAD,
      more_segments=(pool.path_segment(slots_BT, depth_B + 1),),
    )
    return (
      slots_NBD.at[n].set(slots_BT),
      depth_NB.at[n].set(depth_B),
      logits_NBV.at[n].set(model.logits(x_BD)),
      tokens_NBT.at[n].set(below.tokens_RT),
      pool.slot,
    )

  # Row NODES is the root: an empty path.
  state = (
    jnp.zeros((NODES + 1, 4, WIDTH), jnp.int32),
    jnp.full((NODES + 1, 4), -1, jnp.int32),
    jnp.zeros((NODES, 4, CONFIG.vocab_size)),
    jnp.zeros((NODES, 4, 3), jnp.int32),
    jnp.int32(0),
  )
  return pool.loop(jax.lax.fori_loop)(0, NODES, body, state)[2:]


@functools.cache
def compiled(pool_type, written=False):
  return shipped.compiled(jax.jit(lambda: grow(pool_type, written)).lower())


def path(n: int, row: int) -> list[int]:
  tokens = []
  while n != NODES:
    tokens.insert(0, int(TOKEN_NB[n, row]))
    n = PARENT_NB[n, row]
  return tokens


def test_the_pool_equals_plain_forwards_however_it_is_read():
  logits_NBV, tokens_NBT, slot = compiled(kv_pool.KVPool)()
  assert int(slot) == NODES - 1
  others = [compiled(p)() for p in (gathering, ReadFirstPool)]
  others += [compiled(p, True)() for p in POOLS]
  for other_logits_NBV, other_tokens_NBT, _ in others:
    np.testing.assert_allclose(logits_NBV, other_logits_NBV, atol=1e-5)
    np.testing.assert_array_equal(tokens_NBT, other_tokens_NBT)
  assert max(len(path(n, b)) for n in range(NODES) for b in range(4)) > 3
  for n in range(NODES):
    for b in range(4):
      context = [*prompt(b), *path(n, b)]
      expected_V = plain(context)[0][-1]
      np.testing.assert_allclose(logits_NBV[n, b], expected_V, atol=1e-4)
      response = [int(t) for t in tokens_NBT[n, b]]
      expected_TV = plain([*context, *response[:-1]])[0][-3:]
      np.testing.assert_array_equal(response, expected_TV.argmax(-1))


def pool_copies(pool_type, written=False) -> list[str]:
  """Instructions that copy a whole pool, or a layer of it, inside a loop."""
  size = NODES * 4 * CONFIG.num_kv_heads * CONFIG.head_dim
  return copies_in_loops(compiled(pool_type, written).as_text(), size)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("pool_type", POOLS)
def test_the_loop_copies_no_pool(pool_type, written):
  """A copy of the pool a simulation would cost more than the model does."""
  assert not pool_copies(pool_type, written)


def test_reading_before_writing_does_copy_the_pool():
  """Why `KVPool` writes first; if this fails, XLA learned to do without."""
  assert pool_copies(ReadFirstPool)
