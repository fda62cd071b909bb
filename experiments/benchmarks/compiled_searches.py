"""What the project's own compiled programs find, and what they spend on it.

Samples come from `evaluation.draw`, trees from `tsd_jax.search`. Tokens are
counted a prompt: its own forwards until its first correct answer, not those of
the rows beside it in a batch.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from flax import nnx

from tsd_jax.base.types import Array, Prompts
from tsd_jax.models.tokenizer import before_end, is_end
from tsd_jax.run import evaluation
from tsd_jax.search import search as search_lib
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT, Rule
from tsd_jax.tasks.task import Task

_SAMPLES = 64  # Of a prompt in one call.
_PROMPTS = 64  # In one call.


class Policy(NamedTuple):
  """A model and the prompts it is asked."""

  graphdef: Any
  params: Any
  task: Task
  prompts: Prompts


class Spent(NamedTuple):
  """Forwards until the first correct answer of each prompt; inf if none."""

  made_Q: np.ndarray
  # Other counts of the same run: without a prefix cache, or with it, or
  # without the forwards of end tokens, which teach nothing.
  other_Q: np.ndarray


def sample(
  policy: Policy, key: Array, temperature: float, budget: int
) -> Spent:
  """Samples until solved.

  Args:
    policy: the model and its prompts.
    key: random key, consumed.
    temperature: of sampling.
    budget: ends a prompt that spent more with a prefix cache, or that has so
      many samples.

  Returns:
    Forwards of plain sampling; `other_Q`: with a prefix cache, which pays for
    no prefix twice.
  """
  Q, task = len(policy.prompts), policy.task
  plain_Q, cached_Q = np.zeros(Q), np.zeros(Q)
  solved_Q, seen = np.zeros(Q, bool), [set() for _ in range(Q)]
  left, samples = np.arange(Q), 0
  while left.size and samples < budget:
    for start in range(0, left.size, _PROMPTS):
      prompts = left[start : start + _PROMPTS]
      key, draw_key = jax.random.split(key)
      tokens_BGT, _, correct_BG, _ = jax.device_get(
        evaluation.draw(
          policy.graphdef,
          policy.params,
          task,
          policy.prompts[np.resize(prompts, min(Q, _PROMPTS))],
          draw_key,
          jnp.float32(temperature),
          samples=_SAMPLES,
        )
      )
      for n, tokens_GT, correct_G in zip(
        prompts, tokens_BGT, correct_BG, strict=False
      ):
        plain, cached, solved_Q[n] = count_forwards(
          tokens_GT, correct_G, task.end_ids, seen[n]
        )
        plain_Q[n] += plain
        cached_Q[n] += cached
    samples += _SAMPLES
    left = np.flatnonzero(~solved_Q & (cached_Q <= budget))
  return Spent(*(np.where(solved_Q, a, np.inf) for a in (plain_Q, cached_Q)))


def count_forwards(
  tokens_GT: np.ndarray,
  correct_G: np.ndarray,
  end_ids: tuple[int, ...],
  seen: set,
) -> tuple[int, int, bool]:
  """Counts the forwards of samples up to the first correct one.

  The last token of a sample is never run.

  Args:
    tokens_GT: samples in order.
    correct_G: which of them solve the prompt.
    end_ids: tokens that end a sample.
    seen: prefixes that were run before; those of these samples are added.

  Returns:
    Forwards, those of prefixes not seen before, and whether any is correct.
  """
  plain, before = 0, len(seen)
  for tokens_T, correct in zip(tokens_GT.tolist(), correct_G, strict=True):
    ids, ended = before_end(tokens_T, end_ids)
    end = len(ids) if ended else len(tokens_T) - 1
    plain += end
    seen.update(tuple(tokens_T[:i]) for i in range(1, end + 1))
    if correct:
      return plain, len(seen) - before, True
  return plain, len(seen) - before, False


_POLICIES = dict(
  muzero=mctx.muzero_policy, gumbel_muzero=mctx.gumbel_muzero_policy
)


@dataclasses.dataclass(frozen=True)
class Shipped(Rule):
  """A policy of mctx with all of its defaults, as a rule.

  Attributes:
    policy: MuZero's, whose rule is pUCT, or Gumbel MuZero's.
  """

  stop_when_solved: bool = False  # It cannot.
  policy: Literal["muzero", "gumbel_muzero"] = "muzero"

  def __post_init__(self):
    """Refuses what mctx does not do, or does not have."""
    if self.stop_when_solved:
      raise ValueError(
        "search.rule.stop_when_solved=true: mctx makes all of its simulations"
      )
    if self.policy not in _POLICIES:
      raise ValueError(
        f"search.rule.policy={self.policy!r}: use {' or '.join(_POLICIES)}"
      )

  def run(self, key, root, recurrent_fn, budget):
    """Searches without our changes."""
    return _POLICIES[self.policy](
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      num_simulations=budget.num_simulations,
      max_depth=budget.max_depth,
      loop_fn=budget.loop_fn,
    ).search_tree

  def improved(self, tree):
    """Visit frequencies."""
    return PUCT().improved(tree)


@functools.partial(jax.jit, static_argnames=("graphdef", "task", "config"))
def _search(graphdef, params, task: Task, prompts, key, *, config):
  """Searches; forwards made and needed until solved, B each."""
  model = nnx.merge(graphdef, params)
  result = search_lib.search(model, task, prompts, key, config)
  return forwards_to_solve(result.tree, task, config)


def forwards_to_solve(tree: mctx.Tree, task: Task, config: SearchConfig):
  """Forwards until a tree holds a correct answer, B twice; inf if it does not.

  Node n was made by simulation n. A simulation costs the forwards of its step,
  and those of its rollout, and of the steps drawn at it, whose last tokens are
  never run.

  Args:
    tree: a finished search.
    task: gives the end token.
    config: of the search.

  Returns:
    Forwards made, and those without the ones of end tokens, revisits of
    finished answers and last tokens of full paths, which no search needs.
  """
  nodes = tree.embeddings
  grown_BN = tree.node_visits > 0
  parent_BN = jnp.maximum(tree.parents, 0)
  above_BN = jnp.take_along_axis(nodes.depth, parent_BN, axis=1)
  step_BN = jnp.maximum(nodes.depth - above_BN, 1).at[:, 0].set(0)
  drawn_BN = jnp.zeros(grown_BN.shape, jnp.int32)
  if config.step_tokens > 1 and not config.lazy:
    drawn_BN = jnp.sum(jnp.maximum(nodes.length_A - 1, 0), axis=-1)
  full_BN = nodes.depth >= task.response_length
  over_BN = nodes.finished | full_BN | ~grown_BN
  rolled_BN = jnp.zeros(grown_BN.shape, jnp.int32)
  if config.leaf in ("rollout", "mix"):
    ended_BNT = is_end(nodes.answer_tokens, task.end_ids)
    length_BN = jnp.where(
      jnp.any(ended_BNT, axis=-1),
      jnp.argmax(ended_BNT, axis=-1) + 1,
      task.response_length,
    )
    rolled_BN = jnp.maximum(length_BN - nodes.depth - 1, 0) * ~over_BN
    rolled_BN = rolled_BN.at[:, 0].set(0)  # The prompt has none.
  solved_BN = grown_BN & nodes.correct
  first_B = jnp.argmax(solved_BN, axis=1)

  def spent(cost_BN):
    total_BN = jnp.cumsum(cost_BN, axis=1)
    total_B = jnp.take_along_axis(total_BN, first_B[:, None], axis=1)[:, 0]
    return jnp.where(jnp.any(solved_BN, axis=1), total_B, jnp.inf)

  more_BN = drawn_BN + rolled_BN
  bare_BN = jnp.maximum(step_BN - over_BN, 0)
  return spent(step_BN + more_BN), spent(bare_BN + more_BN)


def search(policy: Policy, key: Array, config: SearchConfig) -> Spent:
  """Searches a tree a prompt.

  Args:
    policy: the model and its prompts.
    key: random key, consumed.
    config: the search; its simulations bound what it spends.

  Returns:
    Forwards made; `other_Q`: without those of end tokens.
  """
  Q, found = len(policy.prompts), []
  for start in range(0, Q, _PROMPTS):
    key, search_key = jax.random.split(key)
    prompts = np.arange(start, start + min(Q, _PROMPTS)) % Q
    spent = jax.device_get(
      _search(
        policy.graphdef,
        policy.params,
        policy.task,
        policy.prompts[prompts],
        search_key,
        config=config,
      )
    )
    found.append(np.stack(spent)[:, : Q - start])
  return Spent(*np.concatenate(found, axis=1).astype(float))
