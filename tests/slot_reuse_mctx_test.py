"""mctx's own rules in turns: the trees that they grow in step, tie by tie."""

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from tests import steps_test
from tests.flat_search import flat_search
from tests.search_test import PROMPTS, TASK, B, model
from tests.slot_reuse_test import TREES, N, search_prompts, searched, turns
from tsd_jax.parallel import sharding
from tsd_jax.search import rules
from tsd_jax.search import search as search_lib
from tsd_jax.tasks.task import as_prompts

STEPS = dict(step_tokens=3)
CASES = {
  "puct": (TASK, dict(rule="puct", leaf="rollout")),
  "puct_value": (TASK, dict(rule="puct", leaf="value")),
  # Priors of equally often drawn steps are equal: ties are broken by noise.
  "puct_steps": (steps_test.TASK, dict(rule="puct", leaf="value") | STEPS),
  "gumbel": (TASK, dict(rule="gumbel", leaf="value")),
  "gumbel_rollout": (TASK, dict(rule="gumbel", leaf="rollout")),
  "gumbel_steps": (steps_test.TASK, dict(rule="gumbel", leaf="mix") | STEPS),
}
cases = pytest.mark.parametrize(
  "case",
  ["puct", "puct_steps", "gumbel"]
  + [
    pytest.param(case, marks=pytest.mark.slow)
    for case in ("puct_value", "gumbel_rollout", "gumbel_steps")
  ],
)


def search(case, **changes):
  task, settings = CASES[case]
  return searched(task, **settings | changes)


def leaves(tree):
  """Arrays by name; mctx keeps the noise of Gumbel's roots as extra data."""
  found = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in found}


@cases
def test_a_tree_knows_nothing_of_the_others(case):
  in_step, in_turns = search(case), search(case, slot_reuse=True, trees=TREES)
  expected, got = leaves(in_step.tree), leaves(in_turns.tree)
  assert expected.keys() == got.keys() and len(got) > 20
  for name, a in expected.items():
    np.testing.assert_allclose(got[name], a, atol=1e-5, err_msg=name)
  # A tree makes all its simulations, visits of what is known among them.
  rows = turns([N] * B, TREES) * TREES
  np.testing.assert_allclose(in_turns.simulations, rows / B)
  np.testing.assert_array_equal(in_turns.tree.node_visits[:, 0], N + 1)


@cases
def test_a_solved_tree_makes_room(case):
  """It holds what it held when it was solved, and the others are whole."""
  whole = search(case).tree
  short = search(case, slot_reuse=True, trees=TREES, stop_when_solved=True)
  made_B, needs = short.tree.node_visits[:, 0] - 1, []
  for row in range(B):
    solved = np.flatnonzero(whole.embeddings.correct[row])
    needs.append(int(solved[0]) if len(solved) else N)
    last = needs[-1]
    for a, b in zip(
      jax.tree.leaves(whole.embeddings),
      jax.tree.leaves(short.tree.embeddings),
      strict=True,
    ):
      np.testing.assert_allclose(
        a[row, : last + 1], b[row, : last + 1], atol=1e-5
      )
    assert not np.any(short.tree.node_visits[row, last + 1 :])
  # The node that solves a tree is that of its last simulation.
  np.testing.assert_array_equal(made_B, needs)
  assert min(needs) < max(needs)
  rows = turns(needs, TREES) * TREES
  np.testing.assert_allclose(short.simulations, max(rows, TREES) / B)
  in_step = search(case, stop_when_solved=True)
  assert short.simulations < in_step.simulations
  assert short.forwards < in_step.forwards


def test_the_test_can_tell_ties_apart():
  """With noise of its place in a turn, a tree of equal priors is another."""
  in_step = search("puct_steps").tree
  key = rules.walk_keys

  def others(*args):
    return jnp.flip(key(*args), axis=1)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(rules, "walk_keys", others)
    task, settings = CASES["puct_steps"]
    config = flat_search(
      num_simulations=N, num_candidates=4, stop_when_solved=False,
      slot_reuse=True, trees=TREES, **settings,
    )  # fmt: skip
    # A function that JAX has not seen, or it would not trace it again.
    run = jax.jit(
      lambda prompt_BP: search_prompts.__wrapped__(prompt_BP, task, config)
    )
    got = jax.device_get(run(PROMPTS)).tree
  assert np.any(got.children_index != in_step.children_index)


@pytest.mark.slow
def test_more_places_than_prompts_are_as_many():
  few, many = (search("puct", slot_reuse=True, trees=t) for t in (B, 5 * B))
  for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["puct", "gumbel"])
def test_devices_take_turns_of_their_own(case):
  """Each part has its own trees; the result is that of one device's order."""
  task, settings = CASES[case]
  config = flat_search(
    num_simulations=N, num_candidates=4, slot_reuse=True, trees=TREES,
    **settings,
  )  # fmt: skip
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2), jax.devices()[:2])

  def searching(params, prompts, key):
    del params
    result = search_lib.search(model(), task, prompts, key, config)
    return result.tree, result.forwards, ()

  run = jax.jit(sharding.per_shard(searching, mesh))
  prompts = as_prompts(task, PROMPTS)
  tree, _, _ = jax.device_get(run((), prompts, jax.random.key(0)))
  one = search(case, slot_reuse=True, trees=TREES, stop_when_solved=True).tree
  # Gumbel noise and ties are a part's own; what a node is worth is not.
  assert np.all(tree.node_visits[:, 0] > 0)
  np.testing.assert_allclose(
    tree.embeddings.reward[:, 0], one.embeddings.reward[:, 0], atol=1e-5
  )
  made_B = tree.node_visits[:, 0] - 1
  solved_B = np.any(tree.embeddings.correct, axis=1)
  assert np.all(solved_B | (made_B == N))


def test_mctx_s_walks_split_keys_as_the_test_s():
  """The public loop sees which keys a simulation is given."""
  keys = rules.walk_keys(jax.random.split(jax.random.key(2), 3)[2], 3, 2)
  seen = []

  def select(rng_key, tree, node_index, depth=0):
    del tree, node_index, depth
    jax.debug.callback(
      lambda data: seen.append(tuple(map(int, data))),
      jax.random.key_data(rng_key),
      ordered=False,
    )
    return jnp.int32(0)

  def step(params, rng_key, action, embedding):
    del params, rng_key, action
    zero_2 = jnp.zeros(2)
    return mctx.RecurrentFnOutput(
      reward=zero_2, discount=zero_2, prior_logits=jnp.zeros((2, 1)),
      value=zero_2,
    ), embedding  # fmt: skip

  root = mctx.RootFnOutput(
    prior_logits=jnp.zeros((2, 1)), value=jnp.zeros(2), embedding=jnp.zeros(2)
  )
  mctx.search(
    (), jax.random.split(jax.random.key(2), 3)[2], root=root, recurrent_fn=step,
    root_action_selection_fn=select, interior_action_selection_fn=select,
    num_simulations=3, max_depth=1,
  )  # fmt: skip
  jax.effects_barrier()
  expected = {
    tuple(map(int, jax.random.key_data(jax.random.split(key)[1])))
    for key in keys.reshape(-1)
  }
  assert set(seen) == expected


def test_roots_of_other_prompts_have_other_noise():
  """Blocks of trees are searched one after another, with one key."""
  config = flat_search(
    rule="gumbel", leaf="value", num_simulations=2, num_candidates=4
  )
  asked = as_prompts(TASK, PROMPTS[:2])

  @jax.jit
  def noise(index_B):
    key = jax.random.key(0)
    found = search_lib.search(
      model(), TASK, asked, key, config, index_B=index_B
    )
    return found.tree.extra_data.root_gumbel

  first, again, other = (
    np.asarray(noise(jnp.asarray(at))) for at in ((0, 1), (0, 1), (2, 3))
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).all()
