"""Supervised training: every task is learned, no held-out problem asked."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_experiment, small_maze
from tsd_jax.learning import supervised
from tsd_jax.models import transformer
from tsd_jax.run import evaluation
from tsd_jax.tasks import data
from tsd_jax.tasks.task import as_prompts


def perplexities(graphdef, params, examples):
  return [
    evaluation.perplexity(
      graphdef, params, task, as_prompts(task, prompt_IBP[0]), response_IBT[0]
    )
    for task, (prompt_IBP, response_IBT) in examples
  ]


@pytest.mark.slow
def test_supervised_training_learns_every_task_it_is_given():
  configs = (small_experiment.get_config(), small_maze.get_config())
  rng = np.random.default_rng(0)

  def draw(task, steps):
    return supervised.draw(task, rng, steps, 32, 0.3, set())

  examples = [draw(c.task, 60) for c in configs]
  unseen = [(c.make_task(), draw(c.task, 1)) for c in configs]
  graphdef, params = transformer.create(configs[0].model, 0)
  tasks = [c.make_task() for c in configs]
  first = supervised.train(
    graphdef, params, [examples[:1]], tasks=tasks[:1], learning_rate=1e-2
  )
  both = supervised.train(
    graphdef, params, [examples], tasks=tasks, learning_rate=1e-2
  )
  start, one, two = (
    perplexities(graphdef, p, unseen) for p in (params, first, both)
  )
  assert one[0] < start[0] / 2 and two[0] < start[0] / 2
  assert two[1] < start[1] / 2  # The second task was among the examples here,
  assert two[1] < one[1] / 2  # and here it was not.


@pytest.mark.parametrize("steps", [1, 2, 3, 19])
def test_of_a_few_steps_the_first_is_not_lost(steps):
  """Adam's first step is as long as the rate, whatever the gradient."""
  optimizer = supervised.make_optimizer(0.5, steps)
  params = {"w": jnp.zeros(2)}
  update, _ = optimizer.update(
    {"w": jnp.array([0.3, -0.1])}, optimizer.init(params), params
  )
  np.testing.assert_allclose(update["w"], [-0.5, 0.5], rtol=1e-4)


def test_examples_never_ask_a_held_out_problem():
  task = small_maze.get_config().task
  excluded = supervised.held_out(task)
  splits = data.split_problems(task)
  held_out = {p for split in ("validation", "test") for p in splits[split]}
  assert excluded == set(map(task.group, held_out))
  rng = np.random.default_rng(0)
  prompt_IBP, _ = supervised.draw(task, rng, 50, 40, 1.0, excluded)
  asked = {task.canonical(p) for p in prompt_IBP.reshape(2000, -1)}
  assert len(asked) > 100 and not set(map(task.group, asked)) & excluded
  free, _ = supervised.draw(task, rng, 50, 40, 1.0, set())
  free = {task.group(task.canonical(p)) for p in free.reshape(2000, -1)}
  assert free & excluded


def test_the_loss_is_the_mean_over_tasks_of_their_perplexities_logs():
  configs = (small_experiment.get_config(), small_maze.get_config())
  tasks, rng = [c.make_task() for c in configs], np.random.default_rng(0)
  # Batches of two sizes: each task counts the same.
  examples = [
    supervised.draw(c.task, rng, 1, batch, 0.3, set())
    for c, batch in zip(configs, (8, 24), strict=True)
  ]
  graphdef, params = transformer.create(configs[0].model, 0)
  said = []
  supervised.train(
    graphdef, params, [examples], tasks=tasks, learning_rate=1e-3,
    say=said.append,
  )  # fmt: skip
  found = perplexities(graphdef, params, zip(tasks, examples, strict=True))
  expected = sum(map(math.log, found)) / 2
  assert said[0].startswith(f"phase 1: 1 steps, loss {expected:.3f}, ")
