"""How long an iteration must take at least, from counts and published peaks.

A bound, not a forecast: each phase takes the longest of its multiplications,
its reads from memory and its sends, as if they overlapped perfectly and every
loop ran to its end.
"""

import dataclasses

import numpy as np

from tsd_jax.models import transformer
from tsd_jax.models.flops import flops_per_token
from tsd_jax.planning import hlo
from tsd_jax.run.experiment import Experiment
from tsd_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one chip.

  Attributes:
    flops: bfloat16 operations a second.
    hbm: bytes a second from its memory.
    ici: bytes a second to its neighbours, both ways together.
  """

  flops: float
  hbm: float
  ici: float


# https://docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e and tpu7x.
CHIPS = {
  # v4's links are half as fast as v5p's, of which it has as many.
  "v4": Chip(275e12, 1200e9, 600e9),
  "v5e": Chip(197e12, 819e9, 400e9),
  "v5p": Chip(459e12, 2765e9, 1200e9),
  "v6e": Chip(918e12, 1638e9, 800e9),
  "tpu7x": Chip(2307e12, 7380e9, 1200e9),
}


def trips(config: Experiment) -> dict[str, tuple[int, ...]]:
  """Longest runs of the loops whose end depends on the numbers."""
  task = config.make_task()
  length = task.response_length
  simulations = config.search.num_simulations
  if config.search.slot_reuse:
    own = config.learner_config().prompts // config.mesh.shards
    simulations = -(-own * simulations // config.search.rows(own))
  # The inner loop of a search is that of its leaves' rollouts, or of a step.
  inner = length if config.search.rolls_out else config.search.move_tokens(task)
  return {
    "searching": (simulations, inner),
    "sampling": (length,),
  }


def counts(config: Experiment) -> dict[str, dict[str, int]]:
  """Token forwards of each phase, and how often the weights are read for them.

  The tokens are the ledger's at most: no response ends early, no search stops
  before its budget. A token that is trained on counts three forwards.
  """
  task, learner = config.make_task(), config.learner_config()
  T = task.response_length
  r, s, o = learner.rollout, config.search, config.optimizer
  phases = {
    "sampling": dict(
      tokens=learner.prompt_tokens(task, r.prompts) + r.prompts * r.group * T,
      reads=1 + T * (2 if r.forked else 1),
    ),
    "update": dict(
      tokens=3 * o.epochs * learner.update_tokens(task),
      reads=3 * o.epochs * o.minibatches,
    ),
  }
  if learner.loss.reads_reference:  # The reference reads an update's samples.
    phases["update"]["tokens"] += learner.reference_tokens(task)
    phases["update"]["reads"] += o.epochs * o.minibatches
  if learner.searches:
    leaf = T if s.rolls_out else 0
    # A simulation runs the step that it tries, and, where a node's steps are
    # drawn with it, those; they are drawn side by side.
    step = s.move_tokens(task)
    drawn = step if s.step_tokens > 1 and not s.lazy else 0
    A, Q = s.num_candidates, learner.prompts
    # A part's own prompts, some trees at a time.
    rounds = max(1, Q // config.mesh.shards // s.trees)
    phases["searching"] = dict(
      tokens=learner.prompt_tokens(task, Q, learner.search_calls)
      + Q * s.num_simulations * (step + leaf)
      + Q * (s.num_simulations + 1) * A * drawn,
      reads=rounds * (1 + s.num_simulations * (step + leaf + drawn) + drawn),
    )
  return phases


def context(task: Task) -> float:
  """Positions that a token of a response attends to, in the mean."""
  return task.prompt_length + task.response_length / 2


def estimate(
  config: Experiment, chip: Chip, devices: int, program: hlo.Program
) -> dict[str, dict[str, float]]:
  """Least seconds of each phase.

  Args:
    config: the run.
    chip: peaks of one device.
    devices: how many there are.
    program: the compiled iteration, for what it sends.

  Returns:
    phase -> flops of all devices, seconds of multiplications, reads and sends,
    and the longest of them; `total` is the phases' sum.
  """
  itemsize = np.dtype(np.float32).itemsize
  if config.shape.compute_dtype == "bfloat16":
    itemsize //= 2
  mesh, task = config.mesh, config.make_task()
  result: dict[str, dict[str, float]] = {}
  for phase, count in counts(config).items():
    own = config.search_model if phase == "searching" else None
    model = own or config.shape
    weights = transformer.count_parameters(model)
    per_token = flops_per_token(model, context(task))
    # All that is not of the two loops belongs to the update.
    inside = phase if phase != "update" else ""
    sent = program.totals(trips(config), inside)
    sent_bytes = sum(kind["bytes"] for kind in sent.values())
    parts = mesh.tensor if phase == "update" else mesh.size // mesh.shards
    read_bytes = count["reads"] * weights / parts * itemsize
    result[phase] = {
      "flops": count["tokens"] * per_token,
      "multiply_seconds": count["tokens"] * per_token / devices / chip.flops,
      "read_seconds": read_bytes / chip.hbm,
      "send_bytes": sent_bytes,
    }
  loops = sum(r["send_bytes"] for p, r in result.items() if p != "update")
  result["update"]["send_bytes"] -= loops
  for phase in result.values():
    phase["send_seconds"] = phase["send_bytes"] / chip.ici
    phase["seconds"] = max(v for k, v in phase.items() if "_seconds" in k)
  total = {
    k: sum(phase[k] for phase in result.values())
    for k in ("flops", "send_bytes", "seconds")
  }
  return result | {"total": total}
