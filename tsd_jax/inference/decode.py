"""Prefill and sampling with cached keys and values.

A response is sampled below a shared prompt: the prompt's keys are computed
once and attended to by all of its G responses. A response may also continue
from the middle of another one (a fork), whose keys it attends to in place, so
that a shared prefix is never paid for twice.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tsd_jax.base.types import NO_OBSERVATION, Array
from tsd_jax.inference import vocabulary
from tsd_jax.inference.own_keys import OwnKeys
from tsd_jax.models.transformer import KV, Segment, Transformer
from tsd_jax.parallel import sharding
from tsd_jax.tasks.task import Task, next_observation

# (a row's own tokens so far, how many) -> next token, or `NO_OBSERVATION`.
Observer = Callable[[Array, Array], Array]


class Prefix(NamedTuple):
  """A prompt after its forward pass."""

  # Keys of the prompt, with the mask of its padding; two where all prompts
  # begin alike: that beginning, one row for all of them, and the rest.
  segments: tuple[Segment, ...]
  length_B: Array  # int32, prompt tokens without padding.
  x_BD: Array  # Features at the last prompt token.


class Fork(NamedTuple):
  """Where the rows of a continuation start."""

  kv: KV  # Keys of the responses forked from, already gathered: R rows.
  length_R: Array  # int32 >= 1, number of response tokens kept.
  last_token_R: Array  # int32, the last token kept.


class Sampled(NamedTuple):
  """What `sample` drew; R rows, positions counted from where they start."""

  tokens_RT: Array
  mask_RT: Array  # True up to and including the end token.
  # Of the distribution sampled from (temperature applied); 0 where the
  # environment wrote the token, as is the entropy.
  log_prob_RT: Array
  value_RT: Array  # V_pi before each token.
  entropy_RT: Array
  kv: KV
  # Features at each row's last token, if `sample` was asked to run it.
  x_RD: Array
  forwards: Array  # int32, token forwards made, masked rows included.


def real_tokens(prompt_XP: Array, pad_id: int) -> Array:
  """True up to the last token that is no padding; pure JAX.

  The padding token may also occur within a prompt: many chat models end every
  turn with it.
  """
  is_real_XP = prompt_XP != pad_id
  return jax.lax.cummax(
    is_real_XP.astype(jnp.int8), axis=is_real_XP.ndim - 1, reverse=True
  ).astype(bool)


def prefill(
  model: Transformer,
  prompt_BP: Array,
  pad_id: int | None = None,
  head: int = 0,
) -> Prefix:
  """Runs the model over prompts, padded on the right.

  What all prompts begin with (a system message, worked examples) is run once
  and attended to by all, with the numbers and gradients of running it in each.

  Args:
    model: the model.
    prompt_BP: int32 tokens.
    pad_id: what fills short prompts (`Task.prompt_pad_id`); None where all
      tokens are real, which then costs nothing.
    head: how many leading tokens are the same in all prompts and real
      (`Task.shared_prefix_length`), fewer than the shortest prompt has.

  Returns:
    The prompts' keys and the features at their last real tokens.
  """
  shared = ()
  if head:
    head_1P = prompt_BP[:1, :head]
    kv = model.trunk(head_1P, jnp.arange(head)[None]).kv
    shared = (Segment(kv, jnp.ones((1, 1, head), bool)),)
  prompt_BP = prompt_BP[:, head:]
  B, P = prompt_BP.shape
  if pad_id is None:
    mask_BP = jnp.ones((B, P), bool)
  else:
    mask_BP = real_tokens(prompt_BP, pad_id)
  positions_BP = jnp.broadcast_to(jnp.arange(head, head + P)[None], (B, P))
  causal_1PP = jnp.tril(jnp.ones((1, P, P), bool))
  hidden = model.trunk(
    prompt_BP,
    positions_BP,
    segments=shared,
    self_mask_RTT=causal_1PP & mask_BP[:, None],
  )
  length_B = jnp.sum(mask_BP, axis=1, dtype=jnp.int32)
  last_B11 = (length_B - 1)[:, None, None]
  return Prefix(
    segments=(*shared, Segment(hidden.kv, mask_BP[:, None])),
    length_B=head + length_B,
    x_BD=jnp.take_along_axis(hidden.x_RTD, last_B11, axis=1)[:, 0],
  )


def prefill_tokens(prompts: int, length: int, head: int, calls: int = 1) -> int:
  """Token forwards of some `prefill`s: each runs the common head once."""
  return calls * head + prompts * (length - head)


def repeat_rows(prefix: Prefix, group: int) -> Prefix:
  """Serves `group` rows from each prompt; its keys are not copied."""
  *shared, own = prefix.segments
  return Prefix(
    segments=(*shared, repeat_segment(own, group)),
    length_B=jnp.repeat(prefix.length_B, group),
    x_BD=jnp.repeat(prefix.x_BD, group, axis=0),
  )


def take_prompts(prefix: Prefix, row_R: Array) -> Prefix:
  """Copies the keys of some prompts; those that all share stay as they are."""
  *shared, own = prefix.segments
  own = Segment(take_rows(own.kv, row_R), own.mask_RTS[row_R])
  return Prefix((*shared, own), prefix.length_B[row_R], prefix.x_BD[row_R])


def unstacked(model: Transformer, segments) -> tuple[Segment, ...]:
  """Segments with their keys in the form that the model reads in a loop."""
  return tuple(s._replace(kv=model.unstack(s.kv)) for s in segments)


def repeat_segment(segment: Segment, group: int) -> Segment:
  """Keys that serve `group` rows each; they are not copied."""
  return Segment(segment.kv, jnp.repeat(segment.mask_RTS, group, axis=0))


def observer(
  task: Task,
  prompt_BP: Array,
  head_XT: Array | None = None,
  length_X: Array | None = None,
) -> Observer | None:
  """What a task writes into rows while they are sampled; None: nothing.

  Args:
    task: may observe.
    prompt_BP: prompts, each of R / B rows in a row.
    head_XT: tokens that the rows continue from, B or R of them; by default all
      rows start at their prompts.
    length_X: how many of these tokens each row keeps.
  """
  if task.observe is None:
    return None

  def observe(own_RT, count):
    R, T = own_RT.shape[0], task.response_length
    own_RT = jnp.pad(
      own_RT,
      ((0, 0), (0, T - own_RT.shape[1])),
      constant_values=task.pad_id,
    )
    length_R = jnp.full(R, count)
    if head_XT is not None:
      head_RT, start_R = (
        jnp.repeat(a, R // a.shape[0], axis=0) for a in (head_XT, length_X)
      )
      own_RT = splice(head_RT, start_R, own_RT)
      length_R += start_R
    prompt_RP = jnp.repeat(prompt_BP, R // prompt_BP.shape[0], axis=0)
    return next_observation(task, prompt_RP, own_RT, length_R)

  return observe


def sample(
  model: Transformer,
  prefix: Prefix,
  keys_R: Array | None,
  *,
  length: int,
  eos_id: int,
  pad_id: int,
  temperature: Array | float = 1.0,
  fork: Fork | None = None,
  more_segments: tuple[Segment, ...] = (),
  room_R: Array | None = None,
  stop_ids: Collection[int] = (),
  observe: Observer | None = None,
  run_last: bool = False,
) -> Sampled:
  """Samples responses until their end token or `length` tokens in all.

  Args:
    model: the model.
    prefix: prompts, one row a response (`repeat_rows`).
    keys_R: a random key a row, consumed; None decodes greedily.
    length: T, the most tokens of a response (of a whole one, with a fork).
    eos_id: end token.
    pad_id: fills tokens after the end.
    temperature: divides the logits.
    fork: continue from the middle of other responses instead of the prompt.
    more_segments: keys to attend to between the prompt's and the row's own.
    room_R: the most tokens each row may sample, where it is less.
    stop_ids: tokens after which a row stops as after the end token.
    observe: the tokens that are not the model's to choose (`observer`).
    run_last: run the last tokens of rows too, which chooses nothing any more,
      so that responses can go on from there.

  Returns:
    The sampled tokens with their behaviour log-probabilities. Rows are T long;
    a forked row has at most T - length_R tokens.
  """
  # Before the loop, which would take layers out of their stacks every time.
  model = model.written_out()
  c = model.config
  R, T = prefix.x_BD.shape[0], length
  own = OwnKeys(model, R, T)
  past = unstacked(model, [*prefix.segments, *more_segments])
  start_R = jnp.zeros((R,), jnp.int32) if fork is None else fork.length_R
  room_R = T - start_R if room_R is None else jnp.minimum(room_R, T - start_R)

  if keys_R is not None:
    # All at once: a loop of its own in every step costs more than its numbers.
    uniform_RT = jax.vmap(
      lambda key: jax.vmap(
        lambda step: jax.random.uniform(jax.random.fold_in(key, step))
      )(jnp.arange(T))
    )(keys_R)
  if stop_ids:
    stops_V = np.zeros(c.vocab_size, bool)
    stops_V[list(stop_ids)] = True

  if fork is not None:
    kept_1S = jnp.arange(jax.tree.leaves(fork.kv)[0].shape[-2])[None]
    seen_RS = kept_1S < (fork.length_R - 1)[:, None]
    past = (*past, Segment(fork.kv, seen_RS[:, None]))

  def forward(token_R, position_R, column):
    """Features at the next token of each row, and keys in its column."""
    hidden = model.trunk(
      token_R[:, None], position_R[:, None], segments=past,
      memory=own.at(column),
    )  # fmt: skip
    return hidden.x_RTD[:, 0]

  if fork is None:
    x_RD = prefix.x_BD
    refeed = 0
  else:
    # The features at the fork were not kept: run its last token once more.
    # Its own key is column 0 of the row's cache.
    x_RD = forward(fork.last_token_R, prefix.length_B + fork.length_R - 1, 0)
    refeed = 1

  def choose(step, x_RD, alive_R, out):
    """The tokens at a step, and who goes on after it."""
    z_RV = model.logits(x_RD) / temperature
    softmax = vocabulary.softmax(z_RV)
    if keys_R is None:
      token_R = jnp.argmax(z_RV, axis=-1)
    else:
      token_R = vocabulary.draw(uniform_RT[:, step], softmax.weight_XV)
    chooses_R = alive_R
    if observe is not None:
      written_R = observe(out["tokens_RT"], step)
      free_R = written_R == NO_OBSERVATION
      token_R = jnp.where(free_R, token_R, written_R)
      chooses_R = alive_R & free_R
    chosen_R = jnp.take_along_axis(z_RV, token_R[:, None], axis=1)[:, 0]
    chosen_R -= softmax.log_total_X
    value_R, _ = model.values(x_RD)
    columns = dict(
      tokens_RT=jnp.where(alive_R, token_R, pad_id),
      mask_RT=alive_R,
      log_prob_RT=jnp.where(chooses_R, chosen_R, 0.0),
      value_RT=jnp.where(alive_R, value_R, 0.0),
      entropy_RT=jnp.where(chooses_R, softmax.entropy_X, 0.0),
    )
    out = {
      name: out[name].at[:, step].set(column.astype(out[name].dtype))
      for name, column in columns.items()
    }
    alive_R &= (token_R != eos_id) & (step + 1 < room_R)
    if stop_ids:
      alive_R &= ~jnp.asarray(stops_V)[token_R]
    return token_R, alive_R, out

  def step_fn(state):
    step, token_R, alive_R, last_RD, out, forwards = state
    x_RD = forward(
      token_R, prefix.length_B + start_R + step - 1, step - 1 + refeed
    )
    if run_last:  # Of rows that had this token; of the others as it was.
      ran_R1 = out["mask_RT"][:, step - 1, None]
      last_RD = jnp.where(ran_R1, x_RD, last_RD)
    token_R, alive_R, out = choose(step, x_RD, alive_R, out)
    return step + 1, token_R, alive_R, last_RD, out, forwards + R

  def goes_on(state):
    step, _, alive_R, _, out, _ = state
    if run_last:  # The column after the last one is written nowhere.
      return (step <= T) & jnp.any(out["mask_RT"][:, step - 1])
    return (step < T) & jnp.any(alive_R)

  zeros_RT = jnp.zeros((R, T))
  out = dict(
    tokens_RT=jnp.full((R, T), pad_id, jnp.int32),
    mask_RT=jnp.zeros((R, T), bool),
    log_prob_RT=zeros_RT,
    value_RT=zeros_RT,
    entropy_RT=zeros_RT,
  )
  token_R, alive_R, out = choose(jnp.int32(0), x_RD, room_R > 0, out)
  forwards = jnp.int32(refeed * R)
  state = (jnp.int32(1), token_R, alive_R, x_RD, out, forwards)
  *_, x_RD, out, forwards = jax.lax.while_loop(goes_on, step_fn, state)
  return Sampled(kv=own.kv(), x_RD=x_RD, forwards=forwards, **out)


def take_rows(kv: KV, row_R: Array) -> KV:
  """Copies the keys of given rows, for a fork."""
  return jax.tree.map(lambda a: jnp.take(a, row_R, axis=a.ndim - 4), kv)


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
