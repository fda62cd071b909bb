"""What a run costs: tokens, operations and time, before and after it."""

import os
from collections.abc import Mapping, Sequence

from tsd_jax.base.ledger import BACKWARD_COST
from tsd_jax.models.flops import flops_per_token
from tsd_jax.run.experiment import Experiment


def iteration_tokens(run: Experiment, share: float = 1.0) -> float:
  """Ledger tokens of an iteration, if every response is full.

  Rollouts in trees, and steps that a tree draws before it tries them, come on
  top: how many there are only the run knows.

  Args:
    run: its config.
    share: of its budget that a search spends.
  """
  task, learner = run.make_task(), run.learner_config()
  T, r, Q = task.response_length - 1, learner.rollout, learner.prompts
  total = learner.prompt_tokens(task, r.prompts) + r.prompts * r.group * T
  scored = r.prompts * r.group
  if learner.searches:
    nodes = share * Q * learner.search.num_simulations
    total += learner.prompt_tokens(task, Q, learner.search_calls)
    total += nodes * learner.search.drawn_tokens
    scored += nodes + Q  # Roots hold an answer too.
  total += scored * task.reward.judgements * learner.reward_tokens
  epochs = run.optimizer.epochs
  total += learner.reference_tokens(task)
  return total + BACKWARD_COST * epochs * learner.update_tokens(task)


def search_share(
  run: Experiment, ledgers: Sequence[Mapping[str, int]]
) -> float:
  """Token forwards of searches, over those of a move for every simulation.

  Below 1 where solved trees make room; above it where a simulation has rollouts
  or draws several steps.

  Args:
    run: the config of some runs.
    ledgers: what each has spent.
  """
  learner = run.learner_config()
  budget = run.iterations * learner.prompts * learner.search.num_simulations
  budget *= learner.search.drawn_tokens
  return sum(ledger["search"] for ledger in ledgers) / (len(ledgers) * budget)


# Operations a second of a core, about: what small models and SmolLM2 reach with
# all that is not multiplied.
_CORE_SPEED = 5e10
_LONG = 3600.0  # Seconds from which a run is warned of.


def forecast(run: Experiment, *, cpu: bool) -> str:
  """A line on what a run will read, and how long a CPU takes at a guess.

  Args:
    run: its config.
    cpu: whether it runs on this machine's cores.
  """
  tokens = iteration_tokens(run)
  line = (
    f"tokens: up to {tokens:,.0f} an iteration, "
    f"{tokens * run.iterations:,.0f} in {run.iterations}"
  )
  if not cpu:
    return line
  cores = len(os.sched_getaffinity(0)) if _binds() else os.cpu_count() or 1
  seconds = tokens * flops_per_token(run.shape) / (cores * _CORE_SPEED)
  return (
    f"{line}; on {cores} cores an iteration may take {duration(seconds)}"
    + _warning(seconds * run.iterations)
  )


def remaining(seconds: float, iterations: int) -> str:
  """A line on how long a run goes on, once an iteration was measured.

  Args:
    seconds: that an iteration took.
    iterations: that are left.
  """
  line = f"an iteration takes {duration(seconds)}"
  left = seconds * iterations
  return (
    f"{line}: {iterations} more take {duration(left)}, without evaluation"
    + _warning(left)
  )


def _warning(seconds: float) -> str:
  if seconds < _LONG:
    return ""
  return (
    f". WARNING: the run takes {duration(seconds)}; fewer prompts "
    "(rollout.prompts, search.width, loss.distilled_prompts), nodes "
    "(search.num_simulations) or iterations make it shorter"
  )


def duration(seconds: float) -> str:
  """Writes seconds as a person says them: 0.4 s, 12 s, 7 min, 3.1 hours."""
  if seconds < 10:
    return f"{seconds:.1f} s"
  if seconds < 120:
    return f"{seconds:.0f} s"
  if seconds < 7200:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:,.1f} hours"


def _binds() -> bool:
  """Whether the system says which cores a process may use."""
  return hasattr(os, "sched_getaffinity")


def update_step(run: Experiment) -> dict[str, float]:
  """What one optimiser step of a run reads."""
  learner, o = run.learner_config(), run.optimizer
  return {
    "prompts": learner.trained_prompts / o.minibatches,
    "distilled_prompts": learner.distilled_prompts / o.minibatches,
    "backward_tokens": learner.update_tokens(run.make_task()) / o.minibatches,
    "steps_an_iteration": o.epochs * o.minibatches,
  }


def flops(run: Experiment, ledger: dict[str, int], iterations: int) -> float:
  """Operations of a run, whose search model may be of another size.

  Scores of attention are left out, so that a token costs the same wherever it
  stands, and the ratio of two runs' tokens is that of their operations.

  Args:
    run: its config.
    ledger: what it has spent.
    iterations: in how many.
  """
  total = ledger["total"] * flops_per_token(run.shape)
  if run.search_model is None:
    return total
  learner, task = run.learner_config(), run.make_task()
  prompts = learner.prompt_tokens(task, learner.prompts, learner.search_calls)
  searched = learner.searches * (ledger["search"] + iterations * prompts)
  saved = flops_per_token(run.shape) - flops_per_token(run.search_model)
  return total - saved * searched
