"""One problem of a run, searched by its policy and by what it started from."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tsd_jax.base.config_values import snake_case
from tsd_jax.base.errors import UserError
from tsd_jax.base.types import Prompts
from tsd_jax.learning import memory
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.run import load, reward_params, samples
from tsd_jax.run.experiment import Experiment, initial_params
from tsd_jax.search import explorer
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks import data
from tsd_jax.tasks.task import TaskConfig

_SHOWN = 60  # Characters of a text in an error.


class Problem(NamedTuple):
  """A problem of a task, and where it stands."""

  split: str
  place: int  # In the split, from 0 on.
  prompts: Prompts  # One.

  def __str__(self) -> str:
    return f"{self.split} {self.place}"


def find_example(config: TaskConfig, split: str, place: int) -> Problem:
  """A problem by its place in a split.

  Raises:
    UserError: the split has no such problem.
  """
  problems = data.load_problems(config, split)
  if not 0 <= place < len(problems):
    raise UserError(
      f"--example={place} is no problem of {split}: use 0 to "
      f"{len(problems) - 1}, or another --split"
    )
  return Problem(split, place, problems[[place]])


def find_prompt(config: TaskConfig, text: str) -> Problem:
  """The problem that a text asks, in any split.

  A prompt that says the same in another order is asked as the text has it. A
  text may also be a part of one prompt, as what a user says is in a chat.

  Raises:
    UserError: no problem asks it, or several do.
  """
  wanted, tokenizer = " ".join(text.split()), config.make().tokenizer
  if not wanted:
    raise UserError("--prompt is empty")
  within: list[Problem] = []
  same: list[Problem] = []
  for split in data.filled_splits(config):
    problems = data.load_problems(config, split)
    if (own := _posed(config, problems, split, wanted, tokenizer)) is not None:
      return own
    for i, (prompt_P, length) in enumerate(
      zip(problems.tokens_BP, problems.length_B, strict=True)
    ):
      said = " ".join(tokenizer.decode(prompt_P[:length]).split())
      if wanted in said:
        within.append(Problem(split, i, problems[[i]]))
        same += within[-1:] * (said == wanted)
  # One that says just this is meant, whatever others begin or end so.
  if len(found := same or within) == 1:
    return found[0]
  shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
  if within:
    raise UserError(
      f"{len(within)} problems of this run have {shown} in their prompt, such "
      f"as {', '.join(map(str, within[:3]))}: name one by --split and --example"
    )
  raise UserError(
    f"no problem of this run asks {shown}: name one by --example, or give a "
    "--reward of your own"
  )


def _posed(
  config: TaskConfig,
  problems: Prompts,
  split: str,
  text: str,
  tokenizer: Tokenizer,
) -> Problem | None:
  """The problem of a split whose tokens, in whatever order, a text has."""
  try:
    ids = np.array(tokenizer.encode(text), np.int32)
  except ValueError:  # Symbols that the task does not have.
    return None
  tokens_BP = np.asarray(problems.tokens_BP)
  if len(ids) != tokens_BP.shape[1]:
    return None
  alike_B = np.all(np.sort(tokens_BP, axis=1) == np.sort(ids), axis=1)
  # The prompt itself comes first.
  same_B = np.all(tokens_BP == ids, axis=1)
  for i in sorted(
    np.flatnonzero(alike_B).tolist(), key=lambda i: not same_B[i]
  ):
    if same_B[i] or config.canonical(ids) == config.canonical(tokens_BP[i]):
      one = dataclasses.replace(problems[[i]], tokens_BP=ids[None])
      return Problem(split, i, one)
  return None


def chosen_search(
  config: Experiment, num_simulations: int | None, *, stop_when_solved: bool
) -> SearchConfig:
  """The run's search, of one tree.

  Args:
    config: the run's.
    num_simulations: of the tree; None is the run's own number.
    stop_when_solved: end at the first correct response.

  Raises:
    UserError: it cannot be searched so.
  """
  search = config.search
  wanted = (
    search.num_simulations if num_simulations is None else num_simulations
  )
  if wanted < 1:
    raise UserError(f"--num_simulations={wanted} must be at least 1")
  rule = dataclasses.replace(search.rule, stop_when_solved=stop_when_solved)
  search = dataclasses.replace(
    search, rule=rule, num_simulations=wanted, slot_reuse=False
  )
  memory.check_trees(config.shape, config.make_task(), search, trees=1)
  return search


def trees(
  workdir: str | pathlib.Path,
  problem: Problem,
  search: SearchConfig,
  *,
  seed: int,
  beside_start: bool,
) -> list[dict[str, Any]]:
  """Searches one problem by a run's policy, and by what it started from.

  Args:
    workdir: the run's folder.
    problem: of the run's task.
    search: how it is searched.
    seed: of what is drawn, the same for both.
    beside_start: whether the start searches too; it comes first then.

  Returns:
    What the page shows of each tree (`explorer.tree_data`).

  Raises:
    UserError: there is no run, or no checkpoint yet.
  """
  run = load.open_run(workdir)
  task = run.config.make_task()
  params = reward_params.read(task.reward, pathlib.Path(workdir))

  def models() -> Iterator[tuple[str, Any, Any]]:
    if beside_start:
      yield ("start", *initial_params(run.config))
    yield f"iteration {run.step}", run.graphdef, run.params

  return [
    explorer.tree_data(
      samples.trees(
        graphdef,
        p,
        task,
        problem.prompts,
        search,
        seed=seed,
        reward_params=params,
      ),
      0,
      task.tokenizer,
      name=name,
      prompt=task.tokenizer.decode(np.asarray(problem.prompts.tokens_BP)[0]),
      facts={
        "problem": str(problem),
        "rule": snake_case(type(search.rule).__name__),
      },
      by_reward=not task.reward.knows_correct,
    )
    for name, graphdef, p in models()
  ]
