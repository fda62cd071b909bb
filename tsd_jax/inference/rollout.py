"""On-policy responses: G rows a prompt, some forked from others.

Forks turn plain samples into a small on-policy tree whose inner values show
which part of a response earned its reward (`advantages.tree_advantages`). A
fork reuses the keys of its parent's prefix: shared tokens are sampled once.
"""

import abc
import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from tsd_jax.base import temperature
from tsd_jax.base.errors import refuse
from tsd_jax.base.types import Array, Prompts, chosen_tokens
from tsd_jax.inference import prefill, sampling
from tsd_jax.models.transformer import Transformer
from tsd_jax.tasks.task import Task, environment_tokens, prompt_form


class Samples(NamedTuple):
  """Responses before they are scored; fields as in `types.Responses`."""

  tokens_BGT: Array
  mask_BGT: Array
  log_prob_BGT: Array
  value_BGT: Array
  entropy_BGT: Array
  parent_BG: Array
  fork_BG: Array
  environment_BGT: Array | None


@dataclasses.dataclass(frozen=True)
class Sampler(abc.ABC):
  """How the policy answers; a frozen config that is also what samples.

  A subclass adds its own fields. Whatever it does, `log_prob_BGT` is that of
  the distribution that each token was drawn from: importance ratios need it.

  Raises:
    ValueError: a field has an impossible value.
  """

  forked: ClassVar[bool] = False  # Whether rows may fork from one another.

  prompts: int = 64  # B, prompts an iteration.
  samples: int = 4  # Rows that start at the prompt.
  temperature: float = 1.0  # At which the loss reads the policy.
  # Which of the searched prompts are sampled on: the first ones, or those whose
  # success probability, as the tree found it, is least certain.
  choose: Literal["first", "uncertain"] = "uncertain"
  baseline_prompts: int = 128  # Prompts an iteration of methods without a tree.
  # Sampled prompts that an update reads, those whose rewards differ first, as
  # DAPO's dynamic sampling has it; 0: all. Methods without a tree read as many
  # as `baseline_prompts`, of `oversample` times as many.
  trained_prompts: int = 0
  oversample: int = 1

  def __post_init__(self):
    """Refuses impossible sizes."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    """What is wrong with the fields; a subclass adds its own."""
    for field in ("prompts", "samples", "baseline_prompts", "oversample"):
      if getattr(self, field) < 1:
        yield f"rollout.{field}={getattr(self, field)} must be at least 1"
    if not 0 <= self.trained_prompts <= self.prompts:
      yield (
        f"rollout.trained_prompts={self.trained_prompts} must lie between 0 "
        f"and rollout.prompts={self.prompts}"
      )
    if not temperature.is_allowed(self.temperature):
      yield (
        f"rollout.temperature={self.temperature} must be {temperature.ALLOWED}"
      )

  @property
  def group(self) -> int:
    """G, responses a prompt."""
    return self.samples

  def without_forks(self, **changes) -> "Sampler":
    """The same sampler with other fields, all rows from the prompt."""
    return dataclasses.replace(self, **changes)

  @abc.abstractmethod
  def __call__(
    self, model: Transformer, task: Task, prompts: Prompts, key: Array
  ) -> tuple[Samples, Array]:
    """Samples G responses to each prompt.

    Args:
      model: the policy.
      task: lengths, end token, what the environment writes.
      prompts: B prompts.
      key: random key, consumed.

    Returns:
      The responses, and the number of token forwards below the prompts.
    """


@dataclasses.dataclass(frozen=True)
class RolloutConfig(Sampler):
  """Plain samples, some of them forked at their least certain token."""

  forks: int = 2  # How many samples are forked.
  fork_width: int = 2  # New rows a fork.

  def _violations(self) -> Iterator[str]:
    yield from super()._violations()
    if not 0 <= self.forks <= self.samples:
      yield (
        f"rollout.forks={self.forks} must lie between 0 and "
        f"rollout.samples={self.samples}"
      )
    if self.forks and self.fork_width < 1:
      yield (
        f"rollout.fork_width={self.fork_width} must be at least 1 with forks"
      )

  @property
  def forked(self) -> bool:
    """Whether rows may fork from one another."""
    return self.forks > 0

  @property
  def group(self) -> int:
    """G: the plain rows, then the forks' children."""
    return self.samples + self.forks * self.fork_width

  def without_forks(self, **changes) -> "RolloutConfig":
    """The same sampler with other fields, all rows from the prompt."""
    return dataclasses.replace(self, forks=0, **changes)

  def __call__(self, model, task, prompts, key):
    """Samples the plain rows, then grows the forks from them."""
    B, G = len(prompts), self.samples
    sample_key, fork_key = jax.random.split(key)
    prefix = prefill.prefill(model, prompts, prompt_form(task))
    plain = sampling.sample(
      model,
      prefill.repeat_rows(prefix, G),
      sampling.row_keys(sample_key, B, G),
      observe=sampling.observer(task, prompts),
      **self._options(task),
    )
    samples = plain_samples(task, prompts, plain)
    if not self.forks:
      return samples, plain.forwards
    forks = choose_forks(samples, self.forks, self.fork_width)
    grown, more = self._grow(
      model, task, prompts, prefix, plain, forks, fork_key
    )
    grown = Samples(
      **grown,
      parent_BG=forks.parent_BG,
      fork_BG=forks.length_BG,
      environment_BGT=environment_tokens(task, prompts, grown["tokens_BGT"]),
    )
    both = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), samples, grown)
    return both, plain.forwards + more

  def _options(self, task: Task) -> dict:
    return dict(
      length=task.response_length,
      end_ids=task.end_ids,
      pad_id=task.pad_id,
      temperature=self.temperature,
    )

  def _grow(self, model, task, prompts, prefix, plain, forks: "Forks", key):
    """New rows from the middle of others, BGT each, and token forwards."""
    B, G = forks.parent_BG.shape
    T = task.response_length
    length_R = forks.length_BG.reshape(-1)
    possible_R = forks.possible_BG.reshape(-1)
    source_R = (
      jnp.arange(B)[:, None] * self.samples + forks.parent_BG
    ).reshape(-1)
    head_RT = plain.tokens_RT[source_R]
    last_R = jnp.take_along_axis(head_RT, length_R[:, None] - 1, axis=1)[:, 0]
    grown = sampling.sample(
      model,
      prefill.repeat_rows(prefix, G),
      sampling.row_keys(key, B, G),
      fork=sampling.Fork(
        kv=prefill.take_rows(plain.kv, source_R),
        length_R=length_R,
        last_token_R=last_R,
      ),
      room_R=jnp.where(possible_R, T - length_R, 0),
      observe=sampling.observer(task, prompts, head_RT, length_R),
      **self._options(task),
    )
    heads: dict[str, Array] = dict.fromkeys(_ROWS[2:], jnp.zeros(head_RT.shape))
    heads["tokens"] = head_RT
    heads["mask"] = jnp.zeros(head_RT.shape, bool)
    rows = {}
    for n in _ROWS:
      joined_RT = sampling.splice(heads[n], length_R, getattr(grown, f"{n}_RT"))
      # An empty copy keeps its parent's tokens to the end.
      joined_RT = jnp.where(possible_R[:, None], joined_RT, heads[n])
      rows[f"{n}_BGT"] = joined_RT.reshape(B, G, T)
    return rows, grown.forwards


_ROWS = ("tokens", "mask", "log_prob", "value", "entropy")  # Of a row, RT.


def plain_samples(
  task: Task, prompts: Prompts, sampled: sampling.Sampled
) -> Samples:
  """Samples that all start at their prompts.

  Args:
    task: says what the environment wrote.
    prompts: B prompts.
    sampled: R rows, the G of a prompt one after the other.
  """
  B = len(prompts)
  T = sampled.tokens_RT.shape[1]
  rows = {
    f"{n}_BGT": getattr(sampled, f"{n}_RT").reshape(B, -1, T) for n in _ROWS
  }
  G = rows["tokens_BGT"].shape[1]
  return Samples(
    **rows,
    parent_BG=jnp.broadcast_to(jnp.arange(G)[None], (B, G)),
    fork_BG=jnp.zeros((B, G), jnp.int32),
    environment_BGT=environment_tokens(task, prompts, rows["tokens_BGT"]),
  )


class Forks(NamedTuple):
  """Where G new rows a prompt begin."""

  parent_BG: Array  # int32, the row that each forks from.
  length_BG: Array  # int32 >= 1, tokens that it keeps.
  possible_BG: Array  # bool; a row of one token cannot be forked.


def choose_forks(samples: Samples, forks: int, width: int) -> Forks:
  """The rows whose least certain token is least certain, forked before it.

  Args:
    samples: none of the tokens that the environment wrote is forked at.
    forks: rows that are forked.
    width: new rows a fork.
  """
  chosen_BGT = chosen_tokens(samples.mask_BGT, samples.environment_BGT)
  later_T = jnp.arange(chosen_BGT.shape[-1]) > 0
  entropy_BGT = jnp.where(
    chosen_BGT & later_T[None, None], samples.entropy_BGT, -1.0
  )
  at_BG = jnp.argmax(entropy_BGT, axis=2)
  most_BG = jnp.max(entropy_BGT, axis=2)
  most_BY, row_BY = jax.lax.top_k(most_BG, forks)
  parent_BG = jnp.repeat(row_BY, width, axis=1)
  length_BG = jnp.take_along_axis(at_BG, parent_BG, axis=1)
  return Forks(
    parent_BG,
    jnp.maximum(length_BG, 1),
    jnp.repeat(most_BY >= 0.0, width, axis=1),
  )
