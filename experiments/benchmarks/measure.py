"""The searches that `search_quality` measures: names, settings, runs.

A measurement is the tokens that each setting spent on each prompt before its
first correct answer, in every repetition; inf where it found none.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import compiled_searches, searches
from experiments.benchmarks.compiled_searches import Policy, Shipped
from experiments.benchmarks.prefixes import Path, Prefixes
from experiments.benchmarks.searches import Search, Shape
from tsd_jax.search.best_first import BestFirst
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT, Gumbel

SAMPLING = ("best_of_n", "cached_sampling")
TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.3)
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
STEPS = (0.5, 1.0, 2.0)  # Of the limit on log-ratios, nats.
BETAS = (0.5, 1.0, 2.0)  # Weight of log V.
# Gumbel halves its simulations over the moves: the number is part of it.
SIMULATIONS = (16, 64, 192, 640)
ROLLOUTS = (0.5, 1.0)  # Temperatures of a leaf's rollout.
STEP = 4  # Tokens of a drawn move: an operation, or four squares.
DRAWN = (4, 8)  # Moves of a node, drawn when it is made,
PLACES = (4, 8, 16)  # or when they are tried.
PUCT_C = (0.5, 1.25, 3.0)
WIDER = (1, STEP)  # Tokens that AB-MCTS draws from a node.
# Paths kept in memory from one setting to the next.
_KEPT = 300_000

Value = Callable[[Path], float]
Make = Callable[[int, np.random.Generator], Search]  # From a prompt.


class Skip(Exception):
  """A search that a policy cannot make, and why."""


def classics(
  shape: Shape,
  score: Callable[[int], Value],
  value: Callable[[int], Value] | None,
) -> dict[str, dict[str, Make]]:
  """Searches of the literature, by name and setting.

  Args:
    shape: of the tree.
    score: the reward of a prompt's answers.
    value: the exact value of a prompt's paths; None where nobody wrote one.
  """
  table: dict[str, dict[str, Make]] = {
    "without_replacement": {
      f"{t}": lambda n, rng, t=t: searches.without_replacement(
        shape, rng, temperature=t
      )
      for t in TEMPERATURES
    },
    "beam": {
      f"{k}": lambda n, rng, k=k: searches.beam(shape, k) for k in WIDTHS
    },
    "stochastic_beam": {
      f"{k} at {t}": lambda n, rng, k=k, t=t: searches.beam(
        shape, k, rng=rng, temperature=t
      )
      for k in WIDTHS
      for t in (0.7, 1.0)
    },
    "limited_discrepancy": {
      "": lambda n, rng: searches.limited_discrepancy(shape)
    },
    "limited_discrepancy_ratio": {
      f"{x}": lambda n, rng, x=x: searches.limited_discrepancy(
        shape, by="ratio", step=x
      )
      for x in STEPS
    },
    "levin": {"": lambda n, rng: searches.levin(shape)},
    "ab_mcts": {
      f"{step} at {t}": lambda n, rng, step=step, t=t: searches.ab_mcts(
        shape, rng, score(n), step=step, temperature=t
      )
      for step in WIDER
      for t in (0.7, 1.0)
    },
  }
  if value is not None:
    table["best_first_oracle"] = {
      "": lambda n, rng: searches.discrepancy_best_first(shape, value(n))
    }
  return table


def trees(budget: int) -> dict[str, dict[str, SearchConfig]]:
  """Searches by `tsd_jax.search`, by name and setting.

  Args:
    budget: forwards; a simulation makes one, or those of its step, and those
      of its rollout. mctx's own rules have as many as the others, because they
      go back to finished answers, which cost nothing.
  """
  best_first = dict(num_simulations=budget)
  table: dict[str, dict[str, SearchConfig]] = {
    "best_first_plain": {"": SearchConfig(**best_first)},
    "best_first": {
      "": SearchConfig(BestFirst(transpositions=True), **best_first)
    },
    "best_first_value": {
      f"{beta}": SearchConfig(
        BestFirst(transpositions=True, beta=beta), **best_first, leaf="value"
      )
      for beta in BETAS
    },
  }
  steps = dict(step_tokens=STEP)
  table["steps"] = {
    f"{a} by {prior}": SearchConfig(
      **steps,
      num_simulations=max(budget // (STEP * (a + 1)), 1),
      num_candidates=a,
      step_prior=prior,
    )
    for a in DRAWN
    for prior in ("draws", "log_prob")
  }
  table["steps_lazy"] = {
    f"{a}": SearchConfig(
      BestFirst(lazy=True),
      **steps,
      num_simulations=budget // STEP,
      num_candidates=a,
    )
    for a in PLACES
  }
  rules = {
    "puct": ([Shipped(policy="muzero")], (budget,)),
    "puct_tuned": (
      [PUCT(stop_when_solved=False, c=c) for c in PUCT_C],
      (budget,),
    ),
    "gumbel": ([Shipped(policy="gumbel_muzero")], SIMULATIONS),
    "gumbel_tuned": ([Gumbel(stop_when_solved=False)], SIMULATIONS),
  }
  for name, (variants, counts) in rules.items():
    table[name] = {
      f"{n} at {t}, variant {i}": SearchConfig(
        rule,
        leaf="rollout",
        num_simulations=n,
        rollout_temperature=t,
      )
      for i, rule in enumerate(variants)
      for n in counts
      if n <= budget
      for t in ROLLOUTS
    }
  return table


NAMES = (
  *SAMPLING,
  *classics(Shape(1, 0), *[lambda n: lambda path: 1.0] * 2),
  *trees(32),
)
DRAWS = ("without_replacement", "stochastic_beam", "ab_mcts")


class Measurer:
  """Measures searches of one policy; what they share is made once."""

  def __init__(
    self,
    policy: Policy,
    *,
    budget: int,
    repeats: int,
    value_trained: bool,
    oracle: Callable[[np.ndarray], Value] | None,
  ):
    """Prepares.

    Args:
      policy: a model and its prompts.
      budget: tokens a prompt, the prompt included.
      repeats: of searches that draw.
      value_trained: whether the model's V_search was.
      oracle: the exact value of a prompt's paths, where there is one.
    """
    self._policy, self._repeats = policy, repeats
    self._value_trained = value_trained
    self._prompt_length = policy.prompts.tokens_BP.shape[1]
    self._budget = budget - self._prompt_length
    value = None
    if oracle is not None:
      value = lambda n: oracle(policy.prompts.tokens_BP[n])  # noqa: E731
    shape = Shape(policy.task.response_length, policy.task.eos_id)
    self._classics = classics(shape, self._reward_of, value)
    self._trees = trees(self._budget)

  def settings(self, name: str) -> list[str]:
    """The settings of a search, in words that change when they change.

    Raises:
      Skip: this policy cannot make the search.
    """
    if name in SAMPLING:
      return [f"{t}" for t in TEMPERATURES]
    if name in self._trees:
      if name == "best_first_value" and not self._value_trained:
        raise Skip("its V_search was never trained")
      return [f"{config}" for config in self._trees[name].values()]
    if name not in self._classics:
      raise Skip("its task has no exact solver")
    return list(self._classics[name])

  def measure(self, name: str) -> dict[str, dict[str, Any]]:
    """Runs a search with all of its settings.

    Returns:
      By name, because both kinds of sampling are measured at once: `settings`,
      `tokens` as lists of settings, repetitions and prompts, and for trees
      `tokens_without_ends`.
    """
    if name in SAMPLING:
      return self._sample()
    if name in self._trees:
      return {name: self._search(self._trees[name])}
    return {name: self._classic(self._classics[name], name in DRAWS)}

  def _lists(self, forwards_XXQ) -> list:
    """Counts the prompt as well."""
    return (np.asarray(forwards_XXQ) + self._prompt_length).tolist()

  def _sample(self):
    spent = np.array(
      [
        [
          compiled_searches.sample(
            self._policy, jax.random.key(1000 * z + s), t, self._budget
          )
          for s in range(self._repeats)
        ]
        for z, t in enumerate(TEMPERATURES)
      ]
    )
    settings = [f"{t}" for t in TEMPERATURES]
    return {
      name: dict(settings=settings, tokens=self._lists(spent[:, :, i]))
      for i, name in enumerate(SAMPLING)
    }

  def _search(self, settings):
    draws = any(
      config.leaf == "rollout" or config.step_tokens > 1
      for config in settings.values()
    )
    spent = np.array(
      [
        [
          compiled_searches.search(self._policy, jax.random.key(s), config)
          for s in range(self._repeats if draws else 1)
        ]
        for config in settings.values()
      ]
    )
    return dict(
      settings=list(settings),
      tokens=self._lists(spent[:, :, 0]),
      tokens_without_ends=self._lists(spent[:, :, 1]),
    )

  def _classic(self, settings, draws):
    spent, N = [], len(self._policy.prompts)
    np.random.seed(0)  # What treequest draws from.
    seeds = range(self._repeats if draws else 1)
    for z, make in enumerate(settings.values()):
      self._prefixes.forget(_KEPT)
      made = [
        (n, make(n, np.random.default_rng((z, s, n))))
        for s in seeds
        for n in range(N)
      ]
      found = searches.run(
        made, self._prefixes.log_probs, self._correct, self._budget
      )
      spent.append(found.reshape(len(seeds), N))
    return dict(settings=list(settings), tokens=self._lists(spent))

  @functools.cached_property
  def _prefixes(self):
    p = self._policy
    return Prefixes(p.graphdef, p.params, p.prompts, p.task.response_length)

  @functools.cached_property
  def _score(self):
    return jax.jit(self._policy.task.score)

  def _reward_of(self, n: int) -> Value:
    """The reward of one answer at a time, to prompt n."""
    prompt_1P = self._policy.prompts.tokens_BP[n : n + 1]

    def reward(path: Path) -> float:
      tokens_1T = self._padded([path])
      return float(self._score(prompt_1P, tokens_1T).reward_X[0])

    return reward

  def _padded(self, paths, size: int = 1) -> np.ndarray:
    task = self._policy.task
    tokens_XT = np.full((size, task.response_length), task.pad_id, np.int32)
    for row_T, path in zip(tokens_XT, paths, strict=False):
      row_T[: len(path)] = path
    return tokens_XT

  def _correct(self, pairs):
    """Scores (prompt, answer) pairs in calls of a fixed shape."""
    size, found = 256, []
    asked_QP = self._policy.prompts.tokens_BP
    for start in range(0, len(pairs), size):
      part = pairs[start : start + size]
      tokens_XT = self._padded([path for _, path in part], size)
      prompt_XP = np.repeat(asked_QP[:1], size, axis=0)
      for i, (prompt, _) in enumerate(part):
        prompt_XP[i] = asked_QP[prompt]
      right_X = np.asarray(self._score(prompt_XP, tokens_XT).correct_X)
      found += right_X[: len(part)].tolist()
    return found
