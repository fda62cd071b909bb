"""Keys and values of a search tree: one slot a simulation, in one pool.

mctx hands an expansion nothing but its parent's embedding, so the keys of a
node's ancestors must be found by index. The pool holds them as
`[L, N, B, K, E]`: simulation n writes slot n for the whole batch (one
contiguous slice), and a node remembers the slots of its path.

Two pools with one interface. `RefPool` keeps the arrays in JAX Refs, which a
call writes *before* it gathers its path: reading first makes XLA copy the whole
pool. `CarryPool` threads the same arrays through the carry of the simulation
loop, for programs in which Refs are not wanted.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tsd_jax import sharding
from tsd_jax.models.transformer import KV, Segment, Transformer
from tsd_jax.types import Array

# A simulation loop as mctx calls it: (first, last, body, state) -> state.
LoopFn = Callable[[Any, Any, Callable[[Array, Any], Any], Any], Any]


class _Pool:
  """What both pools share: shapes, the current slot, reading a path.

  A subclass holds keys and values in `_kv`: a pair of Refs, or of arrays.
  """

  def __init__(self, model: Transformer, batch: int, num_slots: int):
    c = model.config
    self._shape = (c.num_layers, num_slots, batch, c.num_kv_heads, c.head_dim)
    self._dtype = model.dtype
    # Trace-time cell: the loop below sets it to the running simulation.
    self._slot: Array | None = None

  def _path_mask(self, slots_BD: Array, depth_B: Array) -> Array:
    """Path positions 0..depth are visible; the rest of D is unused."""
    return (jnp.arange(slots_BD.shape[1])[None] <= depth_B[:, None])[:, None]

  def path_segment(self, slots_BD: Array, length_B: Array) -> Segment:
    """Keys of whole paths, first `length_B` positions visible."""
    batch = jnp.arange(slots_BD.shape[0])[:, None]
    kv = KV(*(a[...][:, slots_BD, batch].swapaxes(2, 3) for a in self._kv))
    return Segment(kv, self._path_mask(slots_BD, length_B - 1))

  @property
  def slot(self) -> Array:
    """Slot that the running simulation writes, a scalar."""
    assert self._slot is not None, "the pool is used outside of its loop"
    return self._slot


class RefPool(_Pool):
  """The pool in mutable arrays; make it inside the jitted search."""

  def __init__(self, model: Transformer, batch: int, num_slots: int):
    """Allocates the pool for `num_slots` simulations."""
    super().__init__(model, batch, num_slots)
    zeros = sharding.split_heads(jnp.zeros(self._shape, self._dtype), 3)
    self._kv = (jax.new_ref(zeros), jax.new_ref(zeros))

  def loop(self, loop_fn: LoopFn) -> LoopFn:
    """Wraps a simulation loop so that each simulation knows its slot."""

    def run(first, last, body, state):
      def step(simulation, state):
        self._slot = simulation
        return body(simulation, state)

      return loop_fn(first, last, step, state)

    return run

  def forward(
    self,
    model: Transformer,
    token_B: Array,
    position_B: Array,
    prompt: tuple[Segment, ...],
    slots_BD: Array,
    depth_B: Array,
  ) -> Array:
    """Runs the model on one new token a tree, below its path.

    Args:
      model: the search model.
      token_B: the new tokens.
      position_B: their positions in the sequences.
      prompt: keys and values of the prompts.
      slots_BD: slots of the path; entry depth_B is this simulation's.
      depth_B: index of the new token in the path.

    Returns:
      Normalised features, BD.
    """
    batch = jnp.arange(token_B.shape[0])[:, None]
    mask_B1D = self._path_mask(slots_BD, depth_B)

    def memory(layer, k_BK1E, v_BK1E):
      pool_k, pool_v = self._kv
      pool_k[layer, self.slot] = k_BK1E[:, :, 0]
      pool_v[layer, self.slot] = v_BK1E[:, :, 0]
      # Read by way of `[...]`, which copies nothing: an index into the Ref
      # itself makes devices that share the heads gather the whole pool.
      k_BKDE = pool_k[...][layer, slots_BD, batch].swapaxes(1, 2)
      v_BKDE = pool_v[...][layer, slots_BD, batch].swapaxes(1, 2)
      return k_BKDE, v_BKDE, mask_B1D

    return model.trunk(
      token_B[:, None], position_B[:, None], segments=prompt, memory=memory
    ).x_RTD[:, 0]


class CarryPool(_Pool):
  """The same pool as plain arrays in the carry of the simulation loop."""

  def __init__(self, model: Transformer, batch: int, num_slots: int):
    """Allocates the pool for `num_slots` simulations."""
    super().__init__(model, batch, num_slots)
    zeros = sharding.split_heads(jnp.zeros(self._shape, self._dtype), 3)
    self._kv = (zeros, zeros)

  def loop(self, loop_fn: LoopFn) -> LoopFn:
    """Wraps a simulation loop so that it carries the pool."""

    def run(first, last, body, state):
      def step(simulation, carry):
        state, self._kv = carry
        self._slot = simulation
        state = body(simulation, state)
        return state, self._kv

      state, self._kv = loop_fn(first, last, step, (state, self._kv))
      return state

    return run

  def forward(
    self,
    model: Transformer,
    token_B: Array,
    position_B: Array,
    prompt: tuple[Segment, ...],
    slots_BD: Array,
    depth_B: Array,
  ) -> Array:
    """Runs the model on one new token a tree; see `RefPool.forward`."""
    # Entry depth_B is the new token itself, which is not in the pool yet.
    path = self.path_segment(slots_BD, depth_B)
    hidden = model.trunk(
      token_B[:, None],
      position_B[:, None],
      segments=[*prompt, path],
    )
    self._kv = tuple(
      a.at[:, self.slot].set(new[:, :, :, 0])
      for a, new in zip(self._kv, hidden.kv, strict=True)
    )
    return hidden.x_RTD[:, 0]
