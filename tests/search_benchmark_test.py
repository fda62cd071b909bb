"""The searches that ours is held against find what ours finds, at toy size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import phases, python_trees, search
from experiments.benchmarks.table import Table

SIZE = search.Size(
  dataclasses.replace(
    search.SIZES["tiny"].model, d_model=16, num_layers=1, d_mlp=16,
    num_heads=2, num_kv_heads=2, head_dim=8, unroll_layers=1,
  ),
  length=4, trees=(2,), simulations=(6,), slow_trees=2,
  step_trees=(2,), step_nodes=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def case():
  return search.Case(SIZE, 2)


def test_a_cache_a_node_changes_no_number(case, monkeypatch):
  """Both grow the tree that a full run of every sequence grows."""
  trees = []
  policy = search.mctx.muzero_policy

  def spy(*args, **kwargs):
    output = policy(*args, **kwargs)
    trees.append(output.search_tree)
    return output

  monkeypatch.setattr(search.mctx, "muzero_policy", spy)
  for make in (search.naive, search.cache_a_node):
    make(case, 6)(case.model, case.prompts, case.prefix)
  plain, cached = trees
  np.testing.assert_array_equal(plain.node_visits, cached.node_visits)
  np.testing.assert_array_equal(plain.children_index, cached.children_index)
  np.testing.assert_allclose(
    plain.children_prior_logits, cached.children_prior_logits, atol=1e-4
  )
  assert int(plain.node_visits[:, 0].min()) == 7  # The root, and six more.


def test_a_search_uses_its_budget(case):
  config = search.budget(2, 6)
  run = search.ours(case, config)
  _, forwards = jax.jit(run)(case.model, case.prompts, case.prefix)
  assert int(forwards) == 2 * 6


def test_bytes_of_a_cache_are_its_arrays(case):
  c = SIZE.model
  kv = jnp.zeros((2, 7, 2, c.num_layers, c.num_kv_heads, 8, c.head_dim))
  assert search.cache_bytes(SIZE, 2, 6) == kv.nbytes


def test_python_trees_grow(monkeypatch):
  pytest.importorskip("torch", reason="needs the extra: interop")
  monkeypatch.setattr(python_trees, "_SECONDS", 0.2)
  assert python_trees.tokens(SIZE.model, 4) > 0
  assert python_trees.steps(SIZE.model, 4) > 0


@pytest.mark.slow
def test_every_row_is_made(monkeypatch):
  pytest.importorskip("torch", reason="needs the extra: interop")
  monkeypatch.setattr(python_trees, "_SECONDS", 0.2)
  table = Table()
  search.measure("toy", SIZE, table, 1)
  names = [row["name"] for row in table._rows]
  assert [name.split(", ")[-1] for name in names] == [
    "tokens", "puct", "state_keys", "steps of 1", "naive mctx",
    "cache a node", "python tokens", "python steps",
  ]  # fmt: skip
  assert all(row["value"] > 0 for row in table._rows)


def test_phases_are_timed(capsys):
  table = Table()
  phases.rollouts("toy", SIZE, 2, 2, table, 1)
  phases.update("toy", SIZE, table, 1)
  sampled, updated = capsys.readouterr().out.splitlines()
  assert "toy, rollouts, 2 x 2" in sampled and "of floor" in sampled
  assert "toy, update, 8 x 4" in updated and "of floor" in updated
