"""Training on pairs of responses: reward models, and policies by DPO.

Both are Bradley and Terry's loss of a reward: a head's on the hidden state at a
response's last token, or the one that the policy itself stands for.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tsd_jax.base.errors import refuse
from tsd_jax.base.types import Array, PromptForm, Prompts
from tsd_jax.inference import reward_model, scoring
from tsd_jax.learning import losses, supervised
from tsd_jax.tasks.pairs import Pairs

_PADDED = PromptForm(padded=True)
_HEAD_STD = 0.02  # As transformers starts a head.


@dataclasses.dataclass(frozen=True)
class Fit:
  """How parameters are fitted to pairs: Adam, each pair once an epoch."""

  learning_rate: float = 1e-5  # Its peak.
  epochs: int = 1
  batch: int = 32  # Pairs a step.
  seed: int = 0  # Of their order, and of heads.

  def __post_init__(self):
    """Refuses impossible settings."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    for name in ("epochs", "batch"):
      if getattr(self, name) < 1:
        yield f"{name}={getattr(self, name)} must be at least 1"
    if not 0 < self.learning_rate < float("inf"):
      yield f"learning_rate={self.learning_rate} must be a positive number"
    if not 0 <= self.seed < 2**32:
      yield f"seed={self.seed} must be in 0..2**32-1"


class Batch(NamedTuple):
  """Pairs that one step reads; leaves lead with B."""

  prompts: Prompts
  tokens_B2T: Array
  mask_B2T: Array
  margin_B: Array
  weight_BK: Array  # How often each counts, for each head; 0 fills a batch up.
  reference_B2: Array  # Log-probabilities under the reference model.


Say = Callable[[str], object]


class Place(NamedTuple):
  """How far a training has come."""

  step: int  # Of all epochs.
  total_2: list[float]  # Loss and accuracy, summed over its epoch's steps.


class Keeper(Protocol):
  """Keeps what a training has come to, and gives it back."""

  def restore(self, like: Any) -> tuple[Any, Place] | None:
    """Parameters and the optimiser's state where it stopped, like these."""
    ...

  def due(self) -> bool:
    """Whether it is time to save."""
    ...

  def save(self, carry: Any, place: Place) -> None:
    """Keeps them."""
    ...


def start_reward(params: Any, width: int, heads: int, seed: int) -> dict:
  """Parameters of a reward model: a language model's trunk and new heads.

  Args:
    params: of the trunk.
    width: D.
    heads: K.
    seed: of the heads.
  """
  score_KD = _HEAD_STD * jax.random.normal(jax.random.key(seed), (heads, width))
  return {"trunk": params, "score_KD": score_KD}


def rewards(graphdef, params, batch: Batch) -> Array:
  """What each head says of each response, B2K; not centred."""
  x_B2D = reward_model.last_states(
    nnx.merge(graphdef, params["trunk"]),
    batch.prompts,
    batch.tokens_B2T,
    batch.mask_B2T,
  )
  return reward_model.head_rewards(params["score_KD"], x_B2D)


def log_probs(graphdef, params, batch: Batch) -> Array:
  """Log-probabilities of whole responses, B2, end tokens included."""
  model = nnx.merge(graphdef, params)
  x_B2TD = scoring.hidden_states(
    model, batch.prompts, batch.tokens_B2T, _PADDED
  )
  log_prob_B2T = scoring.read_log_probs(
    model, scoring.log_prob_of, x_B2TD, batch.tokens_B2T
  )
  return jnp.sum(jnp.where(batch.mask_B2T, log_prob_B2T, 0.0), axis=-1)


def train_reward(
  graphdef, params, pairs: Pairs, fit: Fit, say: Say = print,
  keeper: Keeper | None = None,
) -> dict:  # fmt: skip
  """Fits a reward model; of several heads each to pairs of its own draw.

  Heads that share a trunk differ by where they start and by a bootstrap sample
  of the pairs (arXiv:1602.04621), which each keeps in all epochs.

  Args:
    graphdef: structure of the trunk.
    params: what `start_reward` made; donated.
    pairs: to train on.
    fit: how.
    say: takes a line an epoch.
    keeper: of what it has come to; by default nothing is kept.

  Returns:
    New parameters.
  """
  heads, count = params["score_KD"].shape[0], len(pairs)
  weight_QK = np.ones((count, heads), np.float32)
  if heads > 1:
    rng = np.random.default_rng(fit.seed)
    draws = [np.bincount(rng.integers(count, size=count), minlength=count)
             for _ in range(heads)]  # fmt: skip
    weight_QK = np.stack(draws, axis=1).astype(np.float32)

  def loss_fn(params, batch: Batch):
    reward_B2K = rewards(graphdef, params, batch)
    loss_K, metrics = jax.vmap(
      losses.bradley_terry, in_axes=(-1, None, -1), out_axes=-1
    )(reward_B2K, batch.margin_B, batch.weight_BK)
    return jnp.mean(loss_K), jnp.mean(metrics["accuracy"])

  return minimise(params, pairs, weight_QK, None, loss_fn, fit, say, keeper)


def train_dpo(
  graphdef, params, pairs: Pairs, fit: Fit, beta: float, say: Say = print,
  keeper: Keeper | None = None,
):  # fmt: skip
  """Direct preference optimisation; the reference is where it starts.

  Args:
    graphdef: structure of the model.
    params: where it starts; donated.
    pairs: to train on.
    fit: how.
    beta: of `losses.dpo`.
    say: takes a line an epoch.
    keeper: as in `train_reward`.

  Returns:
    New parameters.
  """
  reference_Q2 = read_all(log_probs, graphdef, params, pairs, fit.batch)

  def loss_fn(params, batch: Batch):
    loss, metrics = losses.dpo(
      log_probs(graphdef, params, batch),
      batch.reference_B2,
      batch.margin_B,
      batch.weight_BK[:, 0],
      beta=beta,
    )
    return loss, metrics["accuracy"]

  weight_Q1 = np.ones((len(pairs), 1), np.float32)
  return minimise(
    params, pairs, weight_Q1, reference_Q2, loss_fn, fit, say, keeper
  )


def minimise(
  params,
  pairs: Pairs,
  weight_QK: np.ndarray,
  reference_Q2: np.ndarray | None,
  loss_fn: Callable[[Any, Batch], tuple[Array, Array]],
  fit: Fit,
  say: Say = print,
  keeper: Keeper | None = None,
):
  """Minimises a loss over pairs, all in a new order every epoch.

  Args:
    params: where it starts; donated.
    pairs: to train on.
    weight_QK: how often each counts.
    reference_Q2: log-probabilities under a reference model, or None.
    loss_fn: (params, batch) -> loss and accuracy.
    fit: batches and epochs.
    say: takes a line an epoch.
    keeper: as in `train_reward`; what goes on ends as if it had not stopped.

  Returns:
    New parameters.
  """
  steps = -(-len(pairs) // fit.batch)
  optimizer = supervised.make_optimizer(
    fit.learning_rate, steps * fit.epochs, end=0.0
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def step(carry, batch):
    params, opt_state = carry
    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, batch
    )
    updates, opt_state = optimizer.update(grads, opt_state)
    return (optax.apply_updates(params, updates), opt_state), (loss, accuracy)

  carry, rng = (params, optimizer.init(params)), np.random.default_rng(fit.seed)
  place = Place(0, [0.0, 0.0])
  if keeper is not None and (kept := keeper.restore(carry)) is not None:
    carry, place = kept
  for epoch in range(1, fit.epochs + 1):
    begun, order_Q = time.monotonic(), rng.permutation(len(pairs))
    before = (epoch - 1) * steps
    if place.step >= before + steps:  # Made before it stopped.
      if place.step == before + steps:  # Its end, whose sums were kept.
        place = Place(place.step, [0.0, 0.0])
      continue
    order_Q = order_Q[(place.step - before) * fit.batch :]
    for batch in batches(pairs, order_Q, fit.batch, weight_QK, reference_Q2):
      carry, of_step = step(carry, batch)
      total_2 = np.add(place.total_2, jax.device_get(of_step)).tolist()
      place = Place(place.step + 1, total_2)
      if keeper is not None and keeper.due():
        keeper.save(carry, place)
    loss, accuracy = np.divide(place.total_2, steps)
    place = Place(place.step, [0.0, 0.0])
    say(
      f"epoch {epoch} of {fit.epochs}: {steps} steps, loss {loss:.3f}, "
      f"accuracy {accuracy:.3f}, {time.monotonic() - begun:.0f} s"
    )
  return carry[0]


def read_all(
  read: Callable[[Any, Any, Batch], Array],
  graphdef,
  params,
  pairs: Pairs,
  size: int,
) -> np.ndarray:
  """What `read` says of all pairs, as many at a time; leads with Q.

  Args:
    read: `rewards` or `log_probs`.
    graphdef: structure of the model.
    params: its parameters.
    pairs: Q of them.
    size: pairs at a time.
  """
  weight_Q1 = np.ones((len(pairs), 1), np.float32)
  order_Q, parts = np.arange(len(pairs)), []
  for batch in batches(pairs, order_Q, size, weight_Q1, None):
    parts.append(np.asarray(_reading(read, graphdef)(params, batch)))
  return np.concatenate(parts)[: len(pairs)]


@functools.lru_cache(maxsize=8)
def _reading(read: Callable[[Any, Any, Batch], Array], graphdef):
  return jax.jit(functools.partial(read, graphdef))


def batches(
  pairs: Pairs,
  order_Q: np.ndarray,
  size: int,
  weight_QK: np.ndarray,
  reference_Q2: np.ndarray | None,
) -> Iterator[Batch]:
  """Pairs in some order, B at a time; the last batch is filled up.

  Args:
    pairs: Q of them.
    order_Q: their indices.
    size: B.
    weight_QK: how often each counts; 0 of those that fill up.
    reference_Q2: log-probabilities under a reference model, or None.
  """
  if reference_Q2 is None:
    reference_Q2 = np.zeros((len(pairs), 2), np.float32)
  for first in range(0, len(order_Q), size):
    row_B = order_Q[first : first + size]
    real_B = np.arange(size) < len(row_B)
    row_B = np.resize(row_B, size)
    some = pairs[row_B]
    yield Batch(
      Prompts(
        jnp.asarray(some.prompt_QP),
        jnp.asarray(some.prompt_length_Q),
        jnp.asarray(row_B, jnp.int32),
      ),
      jnp.asarray(some.tokens_Q2T),
      jnp.asarray(some.mask_Q2T),
      jnp.asarray(some.margin_Q),
      jnp.asarray(weight_QK[row_B] * real_B[:, None]),
      jnp.asarray(reference_Q2[row_B]),
    )
