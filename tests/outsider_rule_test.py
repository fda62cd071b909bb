"""A user's search rule on mctx's public API, with flags for its fields.

All that it takes is the class `BreadthFirst`; nothing of the library is
changed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from flax import nnx

from tests import small_game
from tests.few_iterations import eight_and_one, moved
from tsd_jax.base import config as config_lib
from tsd_jax.base.errors import ConfigError
from tsd_jax.base.types import LOG_ZERO, UNVISITED
from tsd_jax.learning import iteration
from tsd_jax.parallel import sharding
from tsd_jax.run import evaluation, load, train
from tsd_jax.run.experiment import initial_params
from tsd_jax.search.rules import PUCT, Rule, stopping
from tsd_jax.search.search import search
from tsd_jax.tasks import data


@dataclasses.dataclass(frozen=True)
class BreadthFirst(Rule):
  """Tries the best `width` moves of a node, then grows its smallest subtree."""

  compares_values = False  # Leaves need no value: search.leaf=none will do.
  ends_with_node = True  # So the move that ends is none: see `select`.

  width: int = 3

  def __post_init__(self):
    if self.width < 1:
      raise ValueError(f"search.rule.width={self.width} must be at least 1")

  def run(self, key, root, recurrent_fn, budget):
    return mctx.search(
      params=(),
      rng_key=key,
      root=root,
      recurrent_fn=recurrent_fn,
      root_action_selection_fn=lambda key, tree, node: self.select(tree, node),
      interior_action_selection_fn=lambda key, tree, node, depth: self.select(
        tree, node
      ),
      num_simulations=budget.num_simulations,
      max_depth=budget.max_depth,
      loop_fn=stopping(budget, self.stop_when_solved),
    )

  def select(self, tree, node_index):
    """Of an unbatched tree; moves come best first."""
    node = jax.tree.map(lambda a: a[node_index], tree.embeddings)
    place_A = jnp.arange(node.prior_A.shape[-1])
    closed_A = (place_A >= self.width) | (node.prior_A <= LOG_ZERO)
    closed_A |= place_A == node.eos_action
    child_A = tree.children_index[node_index]
    over_A = tree.embeddings.finished | tree.embeddings.cut_off
    closed_A |= (child_A != UNVISITED) & over_A[child_A]
    return jnp.argmin(tree.children_visits[node_index] + 10_000 * closed_A)

  def improved(self, tree):
    """The prior, of the moves that were tried."""
    tried_BNA = tree.children_visits > 0
    tried_BNA |= ~jnp.any(tried_BNA, axis=-1, keepdims=True)
    logits_BNA = jnp.where(tried_BNA, tree.children_prior_logits, LOG_ZERO)
    return jax.nn.softmax(logits_BNA, axis=-1)


CONFIG = """
import dataclasses

from tests import small_game
from outsider_rule_test import BreadthFirst


def get_config():
  base = small_game.get_config()
  rule = BreadthFirst(width=4)
  return dataclasses.replace(
    base,
    search=dataclasses.replace(base.search, rule=rule),
    loss=dataclasses.replace(base.loss, soft_weight=0.5),
  )
"""


@pytest.fixture
def file(tmp_path):
  file = tmp_path / "my_search.py"
  file.write_text(CONFIG)
  return str(file)


def expected_walks(tree, width):
  """The nodes and moves that each simulation ends at, in plain Python."""
  nodes, parents = tree.embeddings, tree.parents
  count = np.sum(tree.node_visits > 0)
  children: dict[int, dict[int, int]] = {n: {} for n in range(count)}
  size = [1] * count

  def cost(n, a):
    closed = a >= width or nodes.prior_A[n, a] <= LOG_ZERO
    closed |= a == nodes.eos_action[n]
    child = children[n].get(a)
    if child is None:
      return 10_000 * closed
    closed |= nodes.finished[child] or nodes.cut_off[child]
    return size[child] + 10_000 * closed

  for new in range(1, count):
    n = 0
    while True:
      a = min(range(nodes.prior_A.shape[1]), key=lambda a: (cost(n, a), a))
      if a not in children[n]:
        break
      n = children[n][a]
    yield new, n, a
    children[n][a] = new
    while n >= 0:
      size[n] += 1
      n = int(parents[n])


@pytest.mark.parametrize("width", [3, 8])
def test_trees_grow_as_in_plain_python(width):
  config = dataclasses.replace(
    small_game.get_config(), task=small_game.BackwardsConfig(digits=3)
  )
  graphdef, params = initial_params(config)
  task = config.make_task()
  rule = BreadthFirst(width=width, stop_when_solved=False)
  options = dataclasses.replace(config.search, rule=rule, num_simulations=10)
  prompts = data.load_problems(config.task, "validation")[:4]
  prompts = jax.tree.map(jnp.asarray, prompts)
  result = jax.jit(
    lambda params: search(
      nnx.merge(graphdef, params), task, prompts, jax.random.key(0), options
    )
  )(params)
  assert float(result.simulations) == 10
  for b in range(4):
    tree = jax.device_get(jax.tree.map(lambda a, b=b: a[b], result.tree))
    depth = tree.embeddings.depth
    for new, parent, action in expected_walks(tree, width):
      assert int(tree.parents[new]) == parent
      assert int(tree.action_from_parent[new]) == action < width
      assert depth[new] == depth[parent] + 1
    # The first level is whole before anything is deeper.
    first = np.flatnonzero(depth[:11] == 1)
    np.testing.assert_array_equal(first, 1 + np.arange(len(first)))
    weights = np.asarray(rule.improved(result.tree))[b]
    np.testing.assert_allclose(weights[:11].sum(-1), 1, rtol=1e-5)
    assert np.all(weights[0, len(first) + 1 :] < 1e-6)


def test_flags_say_its_fields_and_other_rules(file):
  config = config_lib.from_flags(file, {"search.rule.width": "2"})
  assert config.search.rule == BreadthFirst(width=2)
  config = config_lib.from_flags(
    file,
    {"search.rule": "puct", "search.rule.c": "2", "search.leaf": "rollout"},
  )
  assert config.search.rule == PUCT(c=2.0)
  with pytest.raises(ConfigError, match="search.rule.width=0 must be"):
    config_lib.from_flags(file, {"search.rule.width": "0"})


@pytest.mark.slow
def test_a_run_of_a_config_file_trains_and_is_read_back(file, tmp_path):
  """Champions, soft targets and evaluations come out of its trees."""
  config = config_lib.from_flags(file, {"search.rule.width": "3"})
  train.train(config, tmp_path / "run")
  opened = load.open_run(tmp_path / "run")
  assert opened.config == config
  text = (tmp_path / "run" / "metrics.jsonl").read_text()
  assert "soft_kl" in text and "champion_ce" in text and "NaN" not in text
  found = evaluation.evaluate(
    opened.graphdef, opened.params, config.make_task(),
    data.load_problems(config.task, "validation"), "search@6", seed=0,
    search=config.search,
  )["search@6"]  # fmt: skip
  # Two tokens a prompt, and a token a simulation.
  assert found["tokens"] == 8 * (2 + 6)


@pytest.mark.slow
def test_eight_devices_grow_the_same_trees(file):
  mesh = sharding.MeshConfig(data=8)
  eight, one = eight_and_one(config_lib.load(file), mesh)
  assert moved(one) > 1e-5
  for name in ("search_reward", "search_correct", "champion_rate"):
    np.testing.assert_allclose(
      eight.metrics[name], one.metrics[name], rtol=1e-5
    )
  # All devices stop together, when the last tree is solved.
  assert eight.metrics["tokens"].search[0] == one.metrics["tokens"].search[0]


def test_programs_are_shared_between_equal_rules():
  config = small_game.get_config()
  graphdef, _ = initial_params(config)

  def program(width):
    options = dataclasses.replace(config.search, rule=BreadthFirst(width=width))
    changed = dataclasses.replace(config, search=options)
    return iteration.make_train_loop(
      graphdef, config.make_task(), changed.learner_config()
    )

  assert program(3) is program(3) is not program(2)
