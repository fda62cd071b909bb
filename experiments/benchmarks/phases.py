"""Sampling and update of a GRPO step, against their multiplications alone.

Random weights of the shapes of `benchmarks.search`, and its flags. `rollouts`
samples one and four responses to each of 64 prompts, which are run before the
clock starts and whose keys the samples share; responses that have ended are
counted as well. `update` is that of `baselines.step_time`: 8 prompts of 4 full
samples, Adam, clip. Its floor is three times the multiplications of its tokens,
and what the update computes again is not in it.

Command:
  python -m experiments.benchmarks.phases --shapes=tiny,small,smollm2
    --output=FILE.json
"""

import jax
import jax.numpy as jnp

from experiments.baselines.step_workers import make_case
from experiments.benchmarks import search
from experiments.benchmarks.floor import floor_seconds, seconds
from experiments.benchmarks.search import Case, Size
from experiments.benchmarks.table import Table
from tsd_jax.base import config as config_lib
from tsd_jax.inference import sampling
from tsd_jax.inference.prefill import repeat_rows
from tsd_jax.learning import iteration
from tsd_jax.learning import update as update_lib
from tsd_jax.learning.update import FixedParams


def rollouts(
  name: str, size: Size, prompts: int, group: int, table: Table, repeats: int
) -> None:
  """Notes tokens a second of sampling."""
  case, rows = Case(size, prompts), prompts * group

  def run(model, prompts_of, prefix):
    del prompts_of
    sampled = sampling.sample(
      model,
      repeat_rows(prefix, group),
      sampling.row_keys(jax.random.key(2), prompts, group),
      length=size.length,
      end_ids=case.task.end_ids,
      pad_id=case.task.pad_id,
    )
    return sampled.tokens_RT, sampled.log_prob_RT, sampled.forwards

  took, (_, _, forwards) = case.timed(run, repeats)
  floor = floor_seconds(case.model, rows, int(forwards) // rows, repeats)
  table.note(
    f"{name}, rollouts, {prompts} x {group}",
    int(forwards) / took,
    "tokens/s",
    floor=floor / took,
  )


def update(name: str, size: Size, table: Table, repeats: int) -> None:
  """Notes tokens a second of an optimiser step."""
  step = make_case(size.model.vocab_size, size.length, 1)
  task, config = step.make_task(), step.learner_config()
  B, G = config.rollout.prompts, config.rollout.group
  case = Case(size, B)
  opt_state = update_lib.make_optimizer(config).init(case.params)
  hyper = {k: jnp.float32(v) for k, v in config.hyper.items()}
  key = jax.random.key(3)

  program = iteration.Program(case.graphdef, None, task, config, None)
  state, fixed = (
    iteration.init_state(config, case.params),
    FixedParams(case.params),
  )

  @jax.jit
  def sample(state, fixed, prompts):
    responses, _, _ = iteration.sample_phase(
      program, state, prompts, fixed, key
    )
    return iteration.make_batch(program, prompts, responses, None)

  batch = sample(state, fixed, case.prompts)

  @jax.jit
  def run(params, opt_state, batch):
    return update_lib.update(
      case.graphdef,
      (params, opt_state),
      FixedParams(params),
      batch,
      key,
      hyper,
      config,
    )

  took = seconds(lambda: run(case.params, opt_state, batch), repeats)
  # The last token of a response is read by no position.
  tokens = B * (size.length + G * (size.length - 1))
  floor = 3 * floor_seconds(case.model, tokens, 1, repeats)
  table.note(
    f"{name}, update, {B} x {G}", tokens / took, "tokens/s", floor=floor / took
  )


def measure(name: str, size: Size, table: Table, repeats: int) -> None:
  """Notes the rows of one shape."""
  for group in (1, 4):
    rollouts(name, size, 64, group, table, repeats)
  update(name, size, table, repeats)


def main(_):
  """Prints the table and writes the JSON."""
  search.run("phases", measure)


if __name__ == "__main__":
  config_lib.run(main)
