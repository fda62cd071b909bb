"""Keys and values of a search tree: one slot a simulation, in one pool.

mctx hands an expansion nothing but its parent's embedding, so the keys of a
node's ancestors must be found by index. The pool holds them as
`[L, N, S*B, K, E]`: simulation n writes slot n for the whole batch (one
contiguous slice), and a node remembers the slots of its path, token by token.
A slot has room for a step of S tokens. The token at position t of a path lies
in column t mod S of its slot, so that the slots alone say where keys are.

Two pools with one interface. `RefPool` keeps the arrays in JAX Refs, which a
call writes *before* it gathers its path: reading first makes XLA copy the whole
pool. `CarryPool` threads the same arrays through the carry of the simulation
loop, for programs in which Refs are not wanted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax import sharding
from tsd_jax.models.transformer import KV, Segment, Transformer
from tsd_jax.types import Array

# A simulation loop as mctx calls it: (first, last, body, state) -> state.
LoopFn = Callable[[Any, Any, Callable[[Array, Any], Any], Any], Any]


class Turn(NamedTuple):
  """Trees that grow in a simulation, where those are some of all.

  Given to `recurrent_fn` as what mctx calls its parameters.
  """

  tree_R: Array  # Their numbers, all different.
  slot_R: Array  # How many simulations each has made before.
  grows_R: Array  # bool; a place for which no tree waits holds a finished one.


class _Pool:
  """What both pools share: shapes, the current slot, reading a path.

  A subclass holds keys and values in `_kv`: a pair of Refs, or of arrays.
  """

  def __init__(
    self, model: Transformer, batch: int, num_slots: int, step_tokens: int = 1
  ):
    """Makes a pool of zeros.

    Args:
      model: gives the shapes.
      batch: B, trees.
      num_slots: N, simulations.
      step_tokens: S, the most tokens of a step.
    """
    c, columns = model.config, step_tokens * batch
    shape = (c.num_layers, num_slots, columns, c.num_kv_heads, c.head_dim)
    zeros = sharding.split_heads(jnp.zeros(shape, model.dtype), 3)
    self._step_tokens, self._batch = step_tokens, batch
    # No path is longer than all steps together.
    self._longest = num_slots * step_tokens
    self._kv = self._hold(zeros), self._hold(zeros)
    # Trace-time cells. The loop below sets the first to the running simulation;
    # where some trees grow, `turn` says which.
    self._slot: Array | None = None
    self.turn: Turn | None = None

  def _hold(self, zeros: Array) -> Any:
    """What the pool keeps an array in."""
    raise NotImplementedError

  def _columns(self, slots_BD: Array) -> Array:
    """Where in their slots the tokens of paths lie, BD."""
    column_1D = jnp.arange(slots_BD.shape[1])[None] % self._step_tokens
    return column_1D * self._batch + self._tree_R[:, None]

  @property
  def _tree_R(self) -> Array:
    """Numbers of the trees that grow."""
    return jnp.arange(self._batch) if self.turn is None else self.turn.tree_R

  def _turned(self, depth_B: Array) -> Array:
    """Which token of a step that begins at a depth lies in each column, BS."""
    column_1S = jnp.arange(self._step_tokens)[None]
    return (column_1S - depth_B[:, None]) % self._step_tokens

  def path_segment(self, slots_BD: Array, length_B: Array) -> Segment:
    """Keys of whole paths, first `length_B` positions visible."""
    slots_BD = slots_BD[:, : self._longest]
    at = (slice(None), slots_BD, self._columns(slots_BD))
    kv = KV(*(a[...][at].swapaxes(2, 3) for a in self._kv))
    visible_BD = jnp.arange(slots_BD.shape[1])[None] < length_B[:, None]
    return Segment(kv, visible_BD[:, None])

  def forward(
    self,
    model: Transformer,
    step_BS: Array,
    length_B: Array,
    position_B: Array,
    prompt: tuple[Segment, ...],
    slots_BD: Array,
    depth_B: Array,
  ) -> Array:
    """Runs the model on one new step a tree, below its path.

    Args:
      model: the search model.
      step_BS: tokens of the new steps.
      length_B: how many of them are real; the others' keys are never read.
      position_B: positions of the first ones in the sequences.
      prompt: keys and values of the prompts.
      slots_BD: slots of the path; its entries from depth_B on are this
        simulation's, as many as the step has tokens.
      depth_B: index of the step's first token in the path.

    Returns:
      Normalised features at the last token of each step, BD.
    """
    # The tokens go through the model in the order of the slot's columns.
    rows = jnp.arange(step_BS.shape[0])
    offset_BS = self._turned(depth_B)
    x_BSD = self._run(
      model,
      step_BS[rows[:, None], offset_BS],
      position_B[:, None] + offset_BS,
      prompt,
      slots_BD[:, : self._longest],
      depth_B,
    )
    return x_BSD[rows, (depth_B + length_B - 1) % self._step_tokens]

  def _run(
    self, model, token_BS, position_BS, prompt, slots_BD, depth_B
  ) -> Array:
    """Runs the model, writes the slot, returns features BSD."""
    raise NotImplementedError

  def keep(self, kv: KV, depth_B: Array) -> None:
    """Writes keys of new steps that were run elsewhere.

    Args:
      kv: of S tokens a tree, the first one at column 0.
      depth_B: index of the step's first token in the path.
    """
    at_1B1S1 = self._turned(depth_B)[None, :, None, :, None]
    self._write(
      jnp.take_along_axis(jnp.asarray(a), at_1B1S1, axis=3) for a in kv
    )

  def _write(self, kv) -> None:
    """Writes keys and values of new steps, in the order of their columns."""
    self._kv = tuple(
      self._written(a, jnp.asarray(new))
      for a, new in zip(self._kv, kv, strict=True)
    )

  def _written(self, a, new_LBKSE: Array):
    """The pool's keys or values with this simulation's slot written."""
    raise NotImplementedError

  def _own(self) -> tuple[Array, Array]:
    """Slots and columns that some trees write, RS."""
    column_1S = jnp.arange(self._step_tokens)[None] * self._batch
    return self.slot[:, None], column_1S + self._tree_R[:, None]

  @property
  def slot(self) -> Array:
    """Slot that is written: a scalar, or one for each of some trees."""
    assert self._slot is not None, "the pool is used outside of its loop"
    return self._slot if self.turn is None else self.turn.slot_R


class RefPool(_Pool):
  """The pool in mutable arrays; make it inside the jitted search."""

  def _hold(self, zeros):
    return jax.new_ref(zeros)

  def loop(self, loop_fn: LoopFn) -> LoopFn:
    """Wraps a simulation loop so that each simulation knows its slot."""

    def run(first, last, body, state):
      def step(simulation, state):
        self._slot = simulation
        return body(simulation, state)

      return loop_fn(first, last, step, state)

    return run

  def _written(self, a, new_LBKSE):
    if self.turn is None:
      a[:, self.slot] = jax.vmap(_columns_first)(new_LBKSE)
    else:
      a[(slice(None), *self._own())] = new_LBKSE.swapaxes(2, 3)
    return a

  def _run(self, model, token_BS, position_BS, prompt, slots_BD, depth_B):
    column_BD = self._columns(slots_BD)
    # Tokens of the path see what lies before them and themselves.
    last_BS = depth_B[:, None] + self._turned(depth_B)
    mask_BSD = jnp.arange(slots_BD.shape[1])[None, None] <= last_BS[..., None]

    def memory(layer, *new):
      for ref, new_BKSE in zip(self._kv, new, strict=True):
        if self.turn is None:
          ref[layer, self.slot] = _columns_first(new_BKSE)
        else:
          ref[(layer, *self._own())] = new_BKSE.swapaxes(1, 2)
      # Read by way of `[...]`, which copies nothing: an index into the Ref
      # itself makes devices that share the heads gather the whole pool.
      k_BKDE, v_BKDE = (
        ref[...][layer, slots_BD, column_BD].swapaxes(1, 2) for ref in self._kv
      )
      return k_BKDE, v_BKDE, mask_BSD

    return model.trunk(
      token_BS, position_BS, segments=prompt, memory=memory
    ).x_RTD


class CarryPool(_Pool):
  """The same pool as plain arrays in the carry of the simulation loop."""

  def _hold(self, zeros):
    return zeros

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

  def _run(self, model, token_BS, position_BS, prompt, slots_BD, depth_B):
    # Entries from depth_B on are the step's own, not in the pool yet.
    path = self.path_segment(slots_BD, depth_B)
    offset_BS = self._turned(depth_B)
    hidden = model.trunk(
      token_BS,
      position_BS,
      segments=[*prompt, path],
      self_mask_RTT=offset_BS[:, None] <= offset_BS[..., None],
    )

    self._write(hidden.kv)
    return hidden.x_RTD

  def _written(self, a, new_LBKSE):
    if self.turn is None:
      return a.at[:, self.slot].set(jax.vmap(_columns_first)(new_LBKSE))
    return a.at[(slice(None), *self._own())].set(new_LBKSE.swapaxes(2, 3))


def _columns_first(x_BKSE: Array) -> Array:
  """Keys of a step as a slot holds them, [S*B, K, E]."""
  B, K, S, E = x_BKSE.shape
  return jnp.moveaxis(x_BKSE, 2, 0).reshape(S * B, K, E)
