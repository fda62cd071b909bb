"""Sampling with cached keys and values.

A response is sampled below a shared prompt. It may also continue from the
middle of another one (a fork), whose keys it attends to in place, so that a
shared prefix is never paid for twice.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import Array, Prompts
from tsd_jax.inference import vocabulary
from tsd_jax.inference.own_keys import OwnKeys
from tsd_jax.inference.prefill import Prefix, unstacked
from tsd_jax.models.tokenizer import is_end
from tsd_jax.models.transformer import KV, Segment, Transformer
from tsd_jax.parallel import sharding
from tsd_jax.tasks.task import Task, next_observation

# (rows' own tokens so far, how many, which rows ask) -> tokens RO that the
# environment writes next, and how many of them; of others it says nothing.
Observer = Callable[[Array, Array, Array], tuple[Array, Array]]


class Fork(NamedTuple):
  """Where the rows of a continuation start."""

  kv: KV  # Keys of the responses forked from, already gathered: R rows.
  length_R: Array  # int32 >= 1, number of response tokens kept.
  last_token_R: Array  # int32, the last token kept.


class Sampled(NamedTuple):
  """What `sample` drew; R rows, positions counted from where they start."""

  tokens_RT: Array
  mask_RT: Array  # True up to and including the end token.
  # Of the distribution sampled from (temperature applied), or the model's own
  # if `sample` was asked for that; 0 where the environment wrote the token, as
  # is the entropy.
  log_prob_RT: Array
  value_RT: Array  # V_pi before each token.
  entropy_RT: Array
  kv: KV
  # Hidden states at each row's last token, if `sample` was asked to run it.
  x_RD: Array
  forwards: Array  # int32, token forwards made, masked rows included.


class _State(NamedTuple):
  """What the loop of `sample` carries."""

  step: Array  # int32, columns written.
  token_R: Array  # The last token of each row.
  alive_R: Array  # bool, rows that go on.
  x_RD: Array
  out: dict[str, Array]  # Columns of `Sampled`.
  forwards: Array
  # What the environment has still to write, and how much; None: it never does.
  waiting: tuple[Array, Array] | None


def sample(
  model: Transformer,
  prefix: Prefix,
  keys_R: Array | None,
  *,
  length: int,
  end_ids: tuple[int, ...],
  pad_id: int,
  temperature: Array | float = 1.0,
  fork: Fork | None = None,
  more_segments: tuple[Segment, ...] = (),
  room_R: Array | None = None,
  stop_ids: Collection[int] = (),
  observe: Observer | None = None,
  run_last: bool = False,
  own_log_prob: bool = False,
) -> Sampled:
  """Samples responses until an end token or `length` tokens in all.

  Args:
    model: the model.
    prefix: prompts, one row a response (`repeat_rows`).
    keys_R: a random key a row, consumed; None decodes greedily.
    length: T, the most tokens of a response (of a whole one, with a fork).
    end_ids: tokens that end a response.
    pad_id: fills tokens after the end.
    temperature: divides the logits; a number, or one of each row, R1.
    fork: continue from the middle of other responses instead of the prompt.
    more_segments: keys to attend to between the prompt's and the row's own.
    room_R: the most tokens each row may sample, where it is less.
    stop_ids: tokens after which a row stops as after the end token.
    observe: the tokens that are not the model's to choose (`observer`). A row
      stops before an observation that does not fit behind its own tokens.
    run_last: run the last tokens of rows too, which chooses nothing any more,
      so that responses can go on from there.
    own_log_prob: log-probabilities are those of temperature 1.

  Returns:
    The sampled tokens with their behaviour log-probabilities. Rows are T long;
    a forked row has at most T - length_R tokens.
  """
  # Before the loop, which would take layers out of their stacks every time.
  model = model.written_out()
  R, T = prefix.x_BD.shape[0], length
  past = unstacked(model, [*prefix.segments, *more_segments])
  start_R = jnp.zeros((R,), jnp.int32) if fork is None else fork.length_R
  room_R = T - start_R if room_R is None else jnp.minimum(room_R, T - start_R)
  uniform_RT = None if keys_R is None else _uniform(keys_R, T)
  stops_V = np.zeros(model.config.vocab_size, bool)
  stops_V[list(stop_ids)] = True
  if fork is not None:
    kept_1S = jnp.arange(jax.tree.leaves(fork.kv)[0].shape[-2])[None]
    seen_RS = kept_1S < (fork.length_R - 1)[:, None]
    past = (*past, Segment(fork.kv, seen_RS[:, None]))
  loop = _Loop(
    model=model,
    own=OwnKeys(model, R, T),
    past=past,
    position_R=prefix.length_B + start_R,
    # A fork's last token is run again: its key is column 0 of the row's own.
    refeed=int(fork is not None),
    uniform_RT=uniform_RT,
    temperature=temperature,
    room_R=room_R,
    end_ids=end_ids,
    pad_id=pad_id,
    stops_V=stops_V if stop_ids else None,
    observe=observe,
    run_last=run_last,
    own_log_prob=own_log_prob,
  )
  x_RD = prefix.x_BD
  if fork is not None:  # The hidden states at the fork were not kept.
    x_RD = loop.forward(fork.last_token_R, jnp.int32(-1))
  state = loop.choose(loop.start(x_RD))
  state = jax.lax.while_loop(loop.goes_on, loop.advance, state)
  return Sampled(
    kv=loop.own.kv(), x_RD=state.x_RD, forwards=state.forwards, **state.out
  )


def _uniform(keys_R: Array, length: int) -> Array:
  """Random numbers of all steps, RT.

  All at once: a loop of its own in every step costs more than its numbers.
  """
  return jax.vmap(
    lambda key: jax.vmap(
      lambda step: jax.random.uniform(jax.random.fold_in(key, step))
    )(jnp.arange(length))
  )(keys_R)


@dataclasses.dataclass(frozen=True)
class _Loop:
  """The loop of `sample`: what stays the same in all of its steps."""

  model: Transformer
  own: OwnKeys
  past: tuple[Segment, ...]
  position_R: Array  # Of the first token that is sampled.
  refeed: int
  uniform_RT: Array | None  # None decodes greedily.
  temperature: Array | float
  room_R: Array
  end_ids: tuple[int, ...]
  pad_id: int
  stops_V: Any  # None where only the end token stops a row.
  observe: Observer | None
  run_last: bool
  own_log_prob: bool

  def start(self, x_RD: Array) -> _State:
    """Nothing is sampled yet."""
    R, T = x_RD.shape[0], self.own.length
    zeros_RT = jnp.zeros((R, T))
    out = dict(
      tokens_RT=jnp.full((R, T), self.pad_id, jnp.int32),
      mask_RT=jnp.zeros((R, T), bool),
      log_prob_RT=zeros_RT,
      value_RT=zeros_RT,
      entropy_RT=zeros_RT,
    )
    waiting = None
    if self.observe is not None:
      asks_R = jnp.zeros(R, bool)
      shape, _ = jax.eval_shape(
        self.observe, out["tokens_RT"], jnp.int32(0), asks_R
      )
      waiting = jnp.zeros(shape.shape, shape.dtype), jnp.zeros(R, jnp.int32)
    return _State(
      step=jnp.int32(0),
      token_R=jnp.full(R, self.pad_id, jnp.int32),
      alive_R=self.room_R > 0,
      x_RD=x_RD,
      out=out,
      forwards=jnp.int32(self.refeed * R),
      waiting=waiting,
    )

  def forward(self, token_R: Array, step: Array) -> Array:
    """Runs the token of a step; the hidden states that choose the next."""
    hidden = self.model.trunk(
      token_R[:, None],
      (self.position_R + step)[:, None],
      segments=self.past,
      memory=self.own.at(step + self.refeed),
    )
    return hidden.x_RTD[:, 0]

  def choose(self, state: _State, x_RD: Array | None = None) -> _State:
    """Writes the tokens of a step, and who goes on after it."""
    step, out, alive_R = state.step, state.out, state.alive_R
    x_RD = state.x_RD if x_RD is None else x_RD
    own_z_RV = self.model.logits(x_RD)
    z_RV = own_z_RV / self.temperature
    softmax = vocabulary.softmax(z_RV)
    if self.uniform_RT is None:
      token_R = jnp.argmax(z_RV, axis=-1)
    else:
      token_R = vocabulary.draw(self.uniform_RT[:, step], softmax.weight_XV)
    chooses_R, waiting = alive_R, state.waiting
    if waiting is not None:
      fits_R, written_R, first_R, waiting = self._observed(state)
      alive_R &= fits_R
      chooses_R = alive_R & ~written_R
      token_R = jnp.where(written_R, first_R, token_R)
    total_R = softmax.log_total_X
    if self.own_log_prob:
      z_RV, total_R = own_z_RV, vocabulary.softmax(own_z_RV).log_total_X
    chosen_R = jnp.take_along_axis(z_RV, token_R[:, None], axis=1)[:, 0]
    chosen_R -= total_R
    value_R, _ = self.model.values(x_RD)
    columns = dict(
      tokens_RT=jnp.where(alive_R, token_R, self.pad_id),
      mask_RT=alive_R,
      log_prob_RT=jnp.where(chooses_R, chosen_R, 0.0),
      value_RT=jnp.where(alive_R, value_R, 0.0),
      entropy_RT=jnp.where(chooses_R, softmax.entropy_X, 0.0),
    )
    out = {
      name: out[name].at[:, step].set(column.astype(out[name].dtype))
      for name, column in columns.items()
    }
    alive_R &= ~is_end(token_R, self.end_ids) & (step + 1 < self.room_R)
    if self.stops_V is not None:
      stops_R = jnp.asarray(self.stops_V)[token_R]
      if waiting is not None:  # An observation is written to its end.
        stops_R &= waiting[1] == 0
      alive_R &= ~stops_R
    return state._replace(
      step=step + 1, token_R=token_R, alive_R=alive_R, out=out, waiting=waiting
    )

  def _observed(self, state: _State):
    """What the environment writes in a step.

    Returns:
      Whether it fits, R; whether it writes, R; its token, R; what is left.
    """
    assert self.observe is not None and state.waiting is not None
    waiting_RO, left_R = state.waiting
    asked_R = left_R == 0
    token_RO, count_R = self.observe(
      state.out["tokens_RT"], state.step, asked_R & state.alive_R
    )
    token_RO = jnp.where(asked_R[:, None], token_RO, waiting_RO)
    # Whoever goes on from here asks again: a move holds whole observations.
    fits_R = ~asked_R | (state.step == 0)
    fits_R |= state.step + count_R <= self.room_R
    count_R = jnp.where(asked_R, count_R, left_R)
    rest_RO = jnp.roll(token_RO, -1, axis=1), jnp.maximum(count_R - 1, 0)
    return fits_R, count_R > 0, token_RO[:, 0], rest_RO

  def advance(self, state: _State) -> _State:
    """Runs the last tokens and chooses the next ones."""
    x_RD = self.forward(state.token_R, state.step - 1)
    last_RD = state.x_RD
    if self.run_last:  # Of rows that had this token; of the others as it was.
      ran_R1 = state.out["mask_RT"][:, state.step - 1, None]
      last_RD = jnp.where(ran_R1, x_RD, last_RD)
    state = self.choose(state, x_RD)
    R = x_RD.shape[0]
    return state._replace(x_RD=last_RD, forwards=state.forwards + R)

  def goes_on(self, state: _State) -> Array:
    """Whether any row has a token to run or to choose."""
    T = self.own.length
    if self.run_last:  # The column after the last one is written nowhere.
      ran_R = state.out["mask_RT"][:, state.step - 1]
      return (state.step <= T) & jnp.any(ran_R)
    return (state.step < T) & jnp.any(state.alive_R)


def observer(
  task: Task,
  prompts: Prompts,
  head_XT: Array | None = None,
  length_X: Array | None = None,
) -> Observer | None:
  """What a task writes into rows while they are sampled; None: nothing.

  Args:
    task: may observe.
    prompts: B prompts, each of R / B rows in a row.
    head_XT: tokens that the rows continue from, B or R of them; by default all
      rows start at their prompts.
    length_X: how many of these tokens each row keeps.
  """
  if task.observe is None:
    return None

  def observe(own_RT, count, asks_R):
    R, T = own_RT.shape[0], task.response_length
    own_RT = jnp.pad(
      own_RT[:, :T],  # A step may have more room than a response.
      ((0, 0), (0, max(0, T - own_RT.shape[1]))),
      constant_values=task.pad_id,
    )
    length_R = jnp.full(R, count)
    if head_XT is not None and length_X is not None:
      head_RT, start_R = (
        jnp.repeat(a, R // a.shape[0], axis=0) for a in (head_XT, length_X)
      )
      own_RT = splice(head_RT, start_R, own_RT)
      length_R += start_R
    length_R = jnp.where(asks_R, length_R, 0)
    rows = prompts.repeat(R // len(prompts))
    return next_observation(task, rows, own_RT, length_R)

  return observe


def splice(head_RT: Array, length_R: Array, tail_RT: Array) -> Array:
  """Rows that begin with `length_R` columns of the head, then the tail's."""
  T = head_RT.shape[1]
  source_RT = jnp.clip(jnp.arange(T)[None] - length_R[:, None], 0)
  moved_RT = jnp.take_along_axis(tail_RT, source_RT, axis=1)
  return jnp.where(jnp.arange(T)[None] < length_R[:, None], head_RT, moved_RT)


def row_keys(
  key: Array, prompts: int | Array, group: int, number: Array | None = None
) -> Array:
  """A key a response, from its prompt's index and its own.

  Results then do not depend on how prompts are laid out over devices.

  Args:
    key: random key, consumed.
    prompts: how many there are, or their indices among all prompts.
    group: responses of each.
    number: where a key serves several calls, that of the call: one of all
      prompts, or one of each.
  """
  if isinstance(prompts, int):
    prompts = sharding.prompt_indices(prompts)
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  if number is None:
    key_B = fold(key, prompts)
  else:
    number_B = jnp.broadcast_to(number, prompts.shape)
    key_B = jax.vmap(jax.random.fold_in)(fold(key, number_B), prompts)
  return jax.vmap(lambda k: fold(k, jnp.arange(group)))(key_B).reshape(-1)
