"""On-policy responses: G rows a prompt, some forked from others.

Forks turn plain samples into a small on-policy tree whose inner values show
which part of a response earned its reward (`returns.tree_advantages`). A fork
reuses the keys of its parent's prefix: shared tokens are sampled once.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from tsd_jax.base.types import Array, Responses
from tsd_jax.inference import decode
from tsd_jax.models.transformer import Transformer
from tsd_jax.tasks.task import Task, chosen, environment_tokens


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How many responses are sampled, and how."""

  prompts: int = 64  # B, prompts an iteration.
  samples: int = 4  # Rows that start at the prompt.
  forks: int = 2  # How many of them are forked, at their least certain token.
  fork_width: int = 2  # New rows a fork.
  temperature: float = 1.0
  # Which of the searched prompts are sampled on: the first ones, or those whose
  # chance of success, as the tree found it, is least certain.
  choose: Literal["first", "uncertain"] = "uncertain"
  baseline_prompts: int = 128  # Prompts an iteration of methods without a tree.

  def __post_init__(self):
    """Refuses impossible sizes."""
    for field in ("prompts", "samples", "baseline_prompts"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"rollout.{field}={getattr(self, field)} must be at least 1"
        )
    if not 0 <= self.forks <= self.samples:
      raise ValueError(
        f"rollout.forks={self.forks} must lie between 0 and "
        f"rollout.samples={self.samples}"
      )
    if self.forks and self.fork_width < 1:
      raise ValueError(
        f"rollout.fork_width={self.fork_width} must be at least 1 with forks"
      )
    if self.temperature <= 0:
      raise ValueError(f"rollout.temperature={self.temperature} must be > 0")

  @property
  def group(self) -> int:
    """G, responses a prompt."""
    return self.samples + self.forks * self.fork_width


def rollout(
  model: Transformer,
  task: Task,
  prompt_BP: Array,
  prefix: decode.Prefix,
  key: Array,
  config: RolloutConfig,
) -> tuple[Responses, Array]:
  """Samples G responses to each prompt.

  Args:
    model: the policy.
    task: scores responses.
    prompt_BP: prompts.
    prefix: the prompts after prefill by the same model.
    key: random key, consumed.
    config: group size, forks, temperature.

  Returns:
    The responses and the number of token forwards below the prompts.
  """
  B, T = prompt_BP.shape[0], task.response_length
  S, F, W = config.samples, config.forks, config.fork_width
  sample_key, fork_key = jax.random.split(key)
  options = dict(
    length=T,
    eos_id=task.eos_id,
    pad_id=task.pad_id,
    temperature=config.temperature,
  )
  plain = decode.sample(
    model,
    decode.repeat_rows(prefix, S),
    decode.row_keys(sample_key, B, S),
    observe=decode.observer(task, prompt_BP),
    **options,
  )
  names = ("tokens", "mask", "log_prob", "value", "entropy")
  rows = {n: getattr(plain, f"{n}_RT").reshape(B, S, T) for n in names}
  parent_BG = jnp.broadcast_to(jnp.arange(S)[None], (B, S))
  fork_BG = jnp.zeros((B, S), jnp.int32)
  forwards = plain.forwards

  if F:
    # The least certain token after the first of each row; the F rows with the
    # highest such entropy are forked there, before that token.
    later_T = jnp.arange(T) > 0
    chosen_BGT = chosen(task, prompt_BP, rows["tokens"], rows["mask"])
    entropy_BGT = jnp.where(
      chosen_BGT & later_T[None, None], rows["entropy"], -1.0
    )
    at_BG = jnp.argmax(entropy_BGT, axis=2)
    most_BG = jnp.max(entropy_BGT, axis=2)
    most_BY, row_BY = jax.lax.top_k(most_BG, F)
    parent_BR = jnp.repeat(row_BY, W, axis=1)
    # A row of one token cannot be forked: its children stay empty copies.
    possible_R = jnp.repeat(most_BY >= 0.0, W, axis=1).reshape(-1)
    length_BR = jnp.take_along_axis(at_BG, parent_BR, axis=1)
    length_R = jnp.maximum(length_BR.reshape(-1), 1)
    source_R = (jnp.arange(B)[:, None] * S + parent_BR).reshape(-1)
    head_RT = plain.tokens_RT[source_R]
    last_R = jnp.take_along_axis(head_RT, length_R[:, None] - 1, axis=1)[:, 0]
    grown = decode.sample(
      model,
      decode.repeat_rows(prefix, F * W),
      decode.row_keys(fork_key, B, F * W),
      fork=decode.Fork(
        kv=decode.take_rows(plain.kv, source_R),
        length_R=length_R,
        last_token_R=last_R,
      ),
      room_R=jnp.where(possible_R, T - length_R, 0),
      observe=decode.observer(task, prompt_BP, head_RT, length_R),
      **options,
    )
    forwards += grown.forwards
    heads = dict.fromkeys(names[2:], jnp.zeros(head_RT.shape))
    heads["tokens"] = head_RT
    heads["mask"] = jnp.zeros(head_RT.shape, bool)
    for n in names:
      joined_RT = decode.splice(heads[n], length_R, getattr(grown, f"{n}_RT"))
      # An empty copy keeps its parent's tokens to the end.
      joined_RT = jnp.where(possible_R[:, None], joined_RT, heads[n])
      joined_BRT = joined_RT.reshape(B, F * W, T)
      rows[n] = jnp.concatenate([rows[n], joined_BRT], axis=1)
    parent_BG = jnp.concatenate([parent_BG, parent_BR], axis=1)
    fork_BG = jnp.concatenate([fork_BG, length_R.reshape(B, F * W)], axis=1)

  prompt_BGP = jnp.broadcast_to(
    prompt_BP[:, None], (B, config.group, prompt_BP.shape[1])
  )
  score = task.score(prompt_BGP, rows["tokens"])
  return Responses(
    **{f"{n}_BGT": rows[n] for n in names},
    parent_BG=parent_BG,
    fork_BG=fork_BG,
    reward_BG=score.reward_X,
    correct_BG=score.correct_X,
    environment_BGT=environment_tokens(task, prompt_BP, rows["tokens"]),
  ), forwards
