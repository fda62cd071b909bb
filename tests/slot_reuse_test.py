"""Trees that take turns are those that grow in step, and no place is idle."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests import small_experiment, steps_test, transpositions_test
from tests.flat_search import flat_search
from tests.search_test import PROMPTS, TASK, B, model
from tsd_jax.base import config as config_lib
from tsd_jax.search import search as search_lib
from tsd_jax.search.config import SearchConfig
from tsd_jax.search.rules import PUCT
from tsd_jax.tasks.task import as_prompts

N, TREES = 16, 3
CASES = {
  "tokens": (TASK, {}),
  "value": (TASK, dict(leaf="value")),
  "rollouts": (TASK, dict(leaf="mix")),
  "state_keys": (transpositions_test.Bag(), dict(transpositions=True)),
  "steps": (steps_test.TASK, dict(step_tokens=3)),
}


@functools.partial(jax.jit, static_argnums=(1, 2))
def search_prompts(prompt_BP, task, config):
  prompts = as_prompts(task, prompt_BP)
  return search_lib.search(model(), task, prompts, jax.random.key(0), config)


@functools.cache
def searched(task, **settings):
  config = flat_search(
    **{"num_simulations": N, "num_candidates": 4, "stop_when_solved": False}
    | settings
  )
  return jax.device_get(search_prompts(PROMPTS, task, config))


def search(case, **changes):
  task, settings = CASES[case]
  return searched(task, **settings | changes)


def turns(needs, rows):
  """Simulations until every tree has what it needs, the smallest first."""
  made, count = [0] * len(needs), 0
  while waits := [b for b in range(len(needs)) if made[b] < needs[b]]:
    for b in sorted(waits, key=lambda b: (made[b], b))[:rows]:
      made[b] += 1
    count += 1
  return count


@pytest.mark.parametrize(
  "case",
  ["tokens", "state_keys"]
  + [
    pytest.param(case, marks=pytest.mark.slow)
    for case in ("value", "rollouts", "steps")
  ],
)
def test_a_tree_knows_nothing_of_the_others(case):
  in_step, in_turns = search(case), search(case, slot_reuse=True, trees=TREES)
  for a, b in zip(
    jax.tree.leaves(in_step.tree),
    jax.tree.leaves(in_turns.tree),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
  made_B = np.sum(in_step.tree.node_visits > 0, axis=1) - 1
  rows = turns(made_B, TREES) * TREES
  np.testing.assert_allclose(in_turns.simulations, rows / B)
  if case in ("tokens", "value", "state_keys"):
    assert in_turns.forwards == rows


@pytest.mark.parametrize("case", ["tokens", "state_keys"])
def test_a_solved_tree_makes_room(case):
  """It holds what it held when it was solved, and the others are whole."""
  whole = search(case).tree
  short = search(case, slot_reuse=True, trees=TREES, stop_when_solved=True)
  needs = []
  for row in range(B):
    made = np.flatnonzero(whole.node_visits[row] > 0)
    solved = np.flatnonzero(whole.embeddings.correct[row])
    last = solved[0] if len(solved) else made[-1]
    needs.append(int(last))
    for a, b in zip(
      jax.tree.leaves(whole.embeddings),
      jax.tree.leaves(short.tree.embeddings),
      strict=True,
    ):
      np.testing.assert_allclose(
        a[row, : last + 1], b[row, : last + 1], atol=1e-5
      )
    assert not np.any(short.tree.node_visits[row, last + 1 :])
  assert min(needs) < max(needs)
  rows = turns(needs, TREES) * TREES
  np.testing.assert_allclose(short.simulations, max(rows, TREES) / B)


def test_more_places_than_prompts_are_as_many():
  few, many = (search("tokens", slot_reuse=True, trees=t) for t in (B, 5 * B))
  for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
    np.testing.assert_array_equal(a, b)


@dataclasses.dataclass(frozen=True)
class InStep(PUCT):
  """A rule that grows all trees in every simulation."""

  reuses_slots = False


def test_a_rule_whose_trees_grow_in_step_has_no_turns():
  with pytest.raises(
    ValueError, match=r"search\.slot_reuse=true is nothing for .*=in_step"
  ):
    SearchConfig(InStep(), leaf="rollout", slot_reuse=True)


def test_prompts_need_be_no_multiple_of_trees():
  config = small_experiment.get_config()
  sizes = {"rollout.prompts": "8", "search.width": "1", "search.trees": "3"}
  with pytest.raises(config_lib.ConfigError, match="multiple of search.trees"):
    config_lib.override(config, sizes)
  config = config_lib.override(config, sizes | {"search.slot_reuse": "true"})
  assert config.learner_config().search_calls == 1
