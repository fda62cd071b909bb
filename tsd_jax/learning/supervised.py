"""Supervised training on examples of one task or of several: warm starts."""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tsd_jax.inference import scoring
from tsd_jax.learning import losses
from tsd_jax.models import transformer
from tsd_jax.tasks import data
from tsd_jax.tasks.task import (
  Task,
  TaskConfig,
  as_prompts,
  chosen,
  prompt_form,
)

# prompt_IBP and response_IBT of a task; step i reads B of each task.
Examples = tuple[np.ndarray, np.ndarray]


def held_out(config: TaskConfig) -> set:
  """Groups of problems that no example may ask: all but those of train."""
  splits = data.split_problems(config)
  return {
    config.group(problem)
    for split, problems in splits.items()
    if split != "train"
    for problem in problems
  }


def draw(
  config: TaskConfig,
  rng: np.random.Generator,
  steps: int,
  batch: int,
  relabel_fraction: float,
  excluded: set,
) -> Examples:
  """Draws examples of a task; see `TaskConfig.warm_start`.

  Args:
    config: the task.
    rng: advanced by the call.
    steps: I, of the optimiser.
    batch: B, examples a step.
    relabel_fraction: of the prompts, those that ask for what the response does.
    excluded: problems that are never asked.
  """
  drawn = config.warm_start(rng, steps * batch, relabel_fraction, excluded)
  prompt_IBP, response_IBT = (a.reshape(steps, batch, -1) for a in drawn)
  return prompt_IBP, response_IBT


def train(
  graphdef,
  params,
  phases: Sequence[Sequence[Examples]],
  *,
  tasks: Sequence[Task],
  learning_rate: float,
  say: Callable[[str], object] = print,
):
  """Minimises the mean over tasks of a response token's cross-entropy.

  What a task's environment writes is not learned.

  Args:
    graphdef: structure of the model.
    params: where it starts.
    phases: the examples of each task, of one phase after another.
    tasks: the tasks of every phase, in that order.
    learning_rate: its peak.
    say: takes a line a phase.

  Returns:
    New parameters.
  """

  def task_loss(model: transformer.Transformer, task, prompt_BP, response_BT):
    rows_B1T = response_BT[:, None]
    prompts = as_prompts(task, prompt_BP)
    x_B1TD = scoring.hidden_states(model, prompts, rows_B1T, prompt_form(task))
    log_prob_B1T = scoring.read_log_probs(
      model, scoring.log_prob_of, x_B1TD, rows_B1T
    )
    use_B1T = chosen(task, prompts, rows_B1T, rows_B1T != task.pad_id)
    return losses.cross_entropy(log_prob_B1T, use_B1T)

  def loss_fn(params, examples):
    model = nnx.merge(graphdef, params)
    pairs = zip(tasks, examples, strict=True)
    return sum(task_loss(model, t, *e) for t, e in pairs) / len(examples)

  return fit(params, phases, loss_fn, learning_rate, say)


def make_optimizer(
  learning_rate: float, steps: int, end: float = 1e-5
) -> optax.GradientTransformation:
  """Adam whose rate rises over 50 steps and falls as a cosine over all.

  A few steps begin at the peak, so that the first of them is not lost.

  Args:
    learning_rate: its peak.
    steps: all that are taken.
    end: where it ends.
  """
  warm_up = min(50, steps // 2) if steps >= 20 else 0
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, warm_up, steps, end
  )
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def fit(
  params,
  phases: Sequence[Sequence[Examples]],
  loss_fn: Callable,
  learning_rate: float,
  say: Callable[[str], object] = print,
):
  """Minimises a loss over examples.

  Args:
    params: where it starts.
    phases: the examples of each task, of one phase after another.
    loss_fn: (params, the examples of a step) -> loss.
    learning_rate: its peak.
    say: takes a line a phase.

  Returns:
    New parameters.
  """
  steps = sum(len(examples[0][0]) for examples in phases)
  optimizer = make_optimizer(learning_rate, steps)

  @jax.jit
  def run(carry, examples):
    def step(carry, examples):
      params, opt_state = carry
      loss, grads = jax.value_and_grad(loss_fn)(params, examples)
      updates, opt_state = optimizer.update(grads, opt_state)
      return (optax.apply_updates(params, updates), opt_state), loss

    return jax.lax.scan(step, carry, examples)

  carry = (params, optimizer.init(params))
  for number, examples in enumerate(phases, 1):
    start = time.time()
    carry, loss_I = run(carry, jax.tree.map(jnp.asarray, tuple(examples)))
    say(
      f"phase {number}: {len(loss_I)} steps, loss {loss_I[-20:].mean():.3f}, "
      f"{time.time() - start:.0f} s"
    )
  return carry[0]
