"""Keys and values of a search tree: one slot a simulation, in one pool.

mctx hands an expansion nothing but its parent's embedding, so the keys of a
node's ancestors must be found by index. Simulation n writes slot n of every
tree that grows, and a node remembers the slots of its path, token by token. A
slot has room for a step of U tokens. The token at position t of a path lies in
column t mod U of its slot, so that the slots alone say where keys are.

A tree of few slots is read in place: its keys lie head by head, as the matrices
that queries are multiplied by, `[L, B, K, N*U, E]`, and a mask leaves out what
is not on the path. Of others the path is gathered, position by position, from
`[L, N, U*B, K, E]`, where the slots that many trees read are few pages.

The arrays are JAX Refs, which a call writes *before* it reads its path: reading
first, or carrying them through the simulation loop, makes XLA copy the whole
pool in every simulation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array
from tsd_jax.inference import own_keys
from tsd_jax.models.transformer import KV, Segment, Transformer
from tsd_jax.parallel import sharding

# A tree is read in place where it has at most this many positions for each one
# of a path: to gather a path costs as much as to read it twice more.
IN_PLACE = 2

# A simulation loop as mctx calls it: (first, last, body, state) -> state.
LoopFn = Callable[[Any, Any, Callable[[Array, Any], Any], Any], Any]


class Turn(NamedTuple):
  """Trees that grow in a simulation, where those are some of all.

  Given to `recurrent_fn` as what mctx calls its parameters.
  """

  tree_R: Array  # Their numbers, all different.
  slot_R: Array  # How many simulations each has made before.
  grows_R: Array  # bool; a place for which no tree waits holds a finished one.


class KVPool:
  """Keys and values of the nodes of B trees; made inside the jitted search."""

  def __init__(
    self,
    model: Transformer,
    batch: int,
    num_slots: int,
    step_tokens: int = 1,
    *,
    path: int,
    turns: bool = False,
  ):
    """Makes a pool of zeros.

    Args:
      model: gives the shapes.
      batch: B, trees.
      num_slots: N, simulations.
      step_tokens: U, the most tokens of a step.
      path: T, the most tokens of a path.
      turns: whether some of the trees grow at a time, so that `turn` is set.
    """
    c = model.config
    self._stacked = not c.unrolled
    places = num_slots * step_tokens
    # No path is longer than all steps together.
    self._longest = min(path, places)
    self._whole = not turns and places <= IN_PLACE * self._longest
    if self._whole:
      shape = (batch, c.num_kv_heads, places, c.head_dim)
    else:
      shape = (num_slots, step_tokens * batch, c.num_kv_heads, c.head_dim)
    self._step_tokens, self._batch, self._places = step_tokens, batch, places
    # A Ref of all layers, or one a layer where the model's are written out.
    arrays = 1 if self._stacked else c.num_layers
    if self._stacked:
      shape = (c.num_layers, *shape)
    zeros = jnp.zeros(shape, model.dtype)
    zeros = sharding.split_heads(zeros, zeros.ndim - (3 if self._whole else 2))
    k, v = ([jax.new_ref(zeros) for _ in range(arrays)] for _ in range(2))
    self._refs: own_keys.Kept = k, v
    # Trace-time cells. The loop below sets the first to the running simulation;
    # where some trees grow, `turn` says which.
    self._slot: Array | None = None
    self.turn: Turn | None = None

  @property
  def slot(self) -> Array:
    """Slot that is written: a scalar, or one for each of some trees."""
    assert self._slot is not None, "the pool is used outside of its loop"
    return self._slot if self.turn is None else self.turn.slot_R

  def loop(self, loop_fn: LoopFn) -> LoopFn:
    """Wraps a simulation loop so that each simulation knows its slot."""

    def run(first, last, body, state):
      def step(simulation, state):
        self._slot = simulation
        return body(simulation, state)

      return loop_fn(first, last, step, state)

    return run

  def _turned(self, depth_B: Array) -> Array:
    """Which token of a step that begins at a depth lies in each column, BU."""
    column_1U = jnp.arange(self._step_tokens)[None]
    return (column_1U - depth_B[:, None]) % self._step_tokens

  def _reading(self, slots_BT: Array, last_BU: Array) -> tuple[Callable, Array]:
    """How keys of paths are read, and what tokens may see of what is read.

    Args:
      slots_BT: slots of the paths.
      last_BU: index in the path of the last position that each token of the
        step sees.

    Returns:
      A function of what is kept of some layers that gives [..., B, K, S, E];
      and a mask, BUS, or BUT where paths are gathered.
    """
    slots_BT = slots_BT[:, : self._longest]
    position_1T = jnp.arange(slots_BT.shape[1])[None]
    column_1T = position_1T % self._step_tokens
    seen_BUT = position_1T[None] <= last_BU[..., None]
    if self._whole:
      place_BT = slots_BT * self._step_tokens + column_1T
      on_BTS = place_BT[..., None] == jnp.arange(self._places)[None, None]
      mask_BUS = jnp.any(seen_BUT[..., None] & on_BTS[:, None], axis=2)
      return lambda a_XBKSE: a_XBKSE, mask_BUS
    at_BT2 = jnp.stack([slots_BT, self._columns(column_1T)], axis=-1)

    def gather(a_XNRKE):
      # Layers stay whole, heads are a batch: devices that share heads share it.
      *X, _, _, K, E = a_XNRKE.shape
      slot, column, head = range(len(X), len(X) + 3)  # Axes.
      dims = jax.lax.GatherDimensionNumbers(
        offset_dims=(*range(slot), slot + 3),
        collapsed_slice_dims=(slot, column),
        start_index_map=(slot, column),
        operand_batching_dims=(head,),
        start_indices_batching_dims=(1,),
      )
      B, T, _ = at_BT2.shape
      at_BKT2 = jnp.broadcast_to(at_BT2[:, None], (B, K, T, 2))
      sizes = (*X, 1, 1, 1, E)
      return jax.lax.gather(
        a_XNRKE, at_BKT2, dims, sizes, mode="promise_in_bounds"
      )

    return gather, seen_BUT

  def _columns(self, column_1U: Array) -> Array:
    """Where in a slot of all trees a column of those that grow lies, RU."""
    tree_R = jnp.arange(self._batch) if self.turn is None else self.turn.tree_R
    return column_1U * self._batch + tree_R[:, None]

  def path_segment(self, slots_BT: Array, length_B: Array) -> Segment:
    """Keys of whole paths, first `length_B` positions visible."""
    read, mask_B1S = self._reading(slots_BT, length_B[:, None] - 1)
    return Segment(own_keys.as_read(self._refs, self._stacked, read), mask_B1S)

  def forward(
    self,
    model: Transformer,
    step_BU: Array,
    length_B: Array,
    position_B: Array,
    prompt: tuple[Segment, ...],
    slots_BT: Array,
    depth_B: Array,
  ) -> Array:
    """Runs the model on one new step a tree, below its path.

    Args:
      model: the search model.
      step_BU: tokens of the new steps.
      length_B: how many of them are real; the others' keys are never read.
      position_B: positions of the first ones in the sequences.
      prompt: keys and values of the prompts.
      slots_BT: slots of the path; its entries from depth_B on are this
        simulation's, as many as the step has tokens.
      depth_B: index of the step's first token in the path.

    Returns:
      Normalised features at the last token of each step, BD.
    """
    # The tokens go through the model in the order of the slot's columns.
    rows = jnp.arange(step_BU.shape[0])
    offset_BU = self._turned(depth_B)
    # Those of the path see what lies before them and themselves.
    read, mask_BUS = self._reading(slots_BT, depth_B[:, None] + offset_BU)
    x_BUD = model.trunk(
      step_BU[rows[:, None], offset_BU],
      position_B[:, None] + offset_BU,
      segments=prompt,
      memory=own_keys.write_first(
        self._refs, self._stacked, mask_BUS, self._written, read
      ),
    ).x_RTD
    return x_BUD[rows, (depth_B + length_B - 1) % self._step_tokens]

  def keep(self, kv: KV, depth_B: Array) -> None:
    """Writes keys of new steps that were run elsewhere.

    Args:
      kv: of U tokens a tree, the first one at column 0.
      depth_B: index of the step's first token in the path.
    """
    at_B1U1 = self._turned(depth_B)[:, None, :, None]

    def ordered(a_XBKUE):
      at = at_B1U1.reshape((1,) * (a_XBKUE.ndim - 4) + at_B1U1.shape)
      return jnp.take_along_axis(a_XBKUE, at, axis=a_XBKUE.ndim - 2)

    for refs, new in zip(self._refs, jax.tree.map(ordered, kv), strict=True):
      for ref, new_XBKUE in zip(
        refs, [new] if self._stacked else new, strict=True
      ):
        ref[...] = self._written(ref[...], new_XBKUE)

  def _written(
    self, a: Array, new_XBKUE: Array, layer: Array | None = None
  ) -> Array:
    """What the pool keeps, with this simulation's slot written.

    Args:
      a: keys or values of a layer, or of all.
      new_XBKUE: the step's, in the order of the slot's columns.
      layer: the one of a stack that they are of; None for all that it has.
    """
    if self.turn is not None:
      column_RU = self._columns(jnp.arange(self._step_tokens)[None])
      at = (self.slot[:, None], column_RU)
      if self._stacked:
        at = (slice(None) if layer is None else layer, *at)
      return a.at[at].set(new_XBKUE.swapaxes(-3, -2))
    if self._whole:
      place = self.slot * self._step_tokens
      return own_keys.put(a, new_XBKUE, place, layer)
    *X, B, K, U, E = new_XBKUE.shape
    new = jnp.moveaxis(new_XBKUE, -2, -4).reshape(*X, 1, U * B, K, E)
    return own_keys.put(a, new, self.slot, layer, axis=-4)
