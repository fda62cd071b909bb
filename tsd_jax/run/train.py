"""The host loop: compile, dispatch, log, checkpoint, stop.

All work happens in the compiled chunk; the host hands it prompts, writes one
metrics row an iteration, and saves what decides the future. A run stopped at
any moment resumes from its last checkpoint and gives the same numbers.

Several runs that differ in their seeds and scalars may go through one program
(`train_vmapped`): small models fill an accelerator that way.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tsd_jax.base import large_pages, progress
from tsd_jax.base.errors import UserError
from tsd_jax.base.ledger import Ledger
from tsd_jax.learning import iteration, memory, methods, objective
from tsd_jax.parallel import processes, sharding
from tsd_jax.rewards import callback
from tsd_jax.run import directory as directory
from tsd_jax.run import evaluation, report, samples
from tsd_jax.run.experiment import Experiment, initial_params, search_model
from tsd_jax.run.state import RunState
from tsd_jax.tasks import data
from tsd_jax.tasks.task import Task

SHOWN_PROMPTS = 6  # Held-out prompts whose samples and trees are kept.


def check_finite(rows: list[dict[str, Any]], folder: pathlib.Path) -> None:
  """Stops a run whose numbers broke.

  Args:
    rows: its newest metrics.
    folder: of the run.

  Raises:
    UserError: naming the metric and the iteration.
  """
  for row in rows:
    bad = [
      k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)
    ]
    if bad:
      raise UserError(
        f"{folder}, iteration {row['step']}: {', '.join(bad)} became "
        f"{row[bad[0]]}; the last checkpoint is kept. Try a lower "
        "--config.optimizer.learning_rate or --config.loss.clip_high"
      )


def to_rows(metrics, step: int, ledger: Ledger) -> list[dict[str, Any]]:
  """Turns a chunk's stacked metrics, on the host, into a row an iteration."""
  tokens = metrics.pop("tokens")
  rows = []
  for i in range(len(metrics["loss"])):
    ledger.add(jax.tree.map(lambda a, i=i: a[i], tokens))
    row = {"step": step + i + 1}
    row |= {name: float(values[i]) for name, values in metrics.items()}
    rows.append(row | {"ledger": ledger.to_dict()})
  return rows


class Program(NamedTuple):
  """What the runs of one program share."""

  graphdef: Any
  search_graphdef: Any  # None where the search model is a snapshot.
  task: Task
  config: methods.LearnerConfig
  mesh: jax.sharding.Mesh
  held_out: np.ndarray


@dataclasses.dataclass
class VmappedRun:
  """One run of a program."""

  record: RunState
  state: iteration.TrainState
  reference: Any  # The parameters that the run started from.


def train(
  config: Experiment, workdir: str | pathlib.Path
) -> dict[str, dict[str, Any]]:
  """Runs or resumes an experiment.

  Args:
    config: the run.
    workdir: its folder: config.json, metrics.jsonl, checkpoints/, and at the
      end samples.json and report.html.

  Returns:
    The last evaluation.

  Raises:
    UserError: for bad input, before anything is compiled, and for a run whose
      loss became NaN or infinite.
    KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM, once the running
      dispatch has ended and a checkpoint is on disk.
  """
  return train_vmapped([config], [workdir])[0]


def train_vmapped(
  configs: Sequence[Experiment], workdirs: Sequence[str | pathlib.Path]
) -> list[dict[str, dict[str, Any]]]:
  """Runs or resumes experiments as runs of one program, by vmap.

  A lane's folder is that of the run alone, and so are its numbers, up to
  rounding; `host_rewards`, in the first lane's rows, counts for all. Lanes that
  were stopped at different iterations go on one group after another.

  Args:
    configs: runs that differ in their seeds, and in scalars that the program
      takes as arguments (`LearnerConfig.hyper`).
    workdirs: their folders.

  Returns:
    Their last evaluations.

  Raises:
    UserError, KeyboardInterrupt, SystemExit: as `train`.
    ValueError: for runs that are no runs of one program.
  """
  check_alike(configs)
  config = configs[0]
  evaluation.parse_modes(config.eval.modes)
  mesh = sharding.make_mesh(config.mesh)
  task, learner_config = config.make_task(), config.learner_config()
  needs = memory.check(
    config.model,
    task,
    learner_config,
    config.mesh,
    search_model=config.search_model,
    runs=len(configs),
  )
  held_out = data.load_problems(config.task, config.eval.split)
  problems = data.load_problems(config.task, "train")

  with contextlib.ExitStack() as stack:
    runs = []
    for c, folder in zip(configs, workdirs, strict=True):
      graphdef, params = initial_params(c)
      search_graphdef, search_params = search_model(c)
      prompts = data.PromptIterator(
        problems, batch_size=learner_config.prompts, seed=c.seed
      )
      record = stack.enter_context(RunState(c, pathlib.Path(folder), prompts))
      reference = sharding.place(jax.tree.map(jnp.copy, params), mesh)
      state = iteration.init_state(
        learner_config, params, c.seed, search_params
      )
      state = record.resume(sharding.place(state, mesh))
      runs.append(VmappedRun(record, state, reference))
      # The loop holds them while it runs.
      del params, search_params, state, reference
    program = Program(
      graphdef, search_graphdef, task, learner_config, mesh, held_out
    )
    todo = [lane for lane in runs if not lane.record.finished]
    todo.sort(key=lambda lane: lane.record.step)
    groups = itertools.groupby(todo, key=lambda lane: lane.record.step)
    with signals() as asked:
      for step, group in groups:
        with progress.Progress(config.iterations, step) as bar:
          if processes.leads():
            bar.say(needs)
            bar.say(_large_pages(), once=True)
          advance(program, list(group), bar, asked)
        if asked:
          break
    _finish(program, todo, asked)
    return [lane.record.last_eval for lane in runs]


def _finish(
  program: Program, runs: Sequence[VmappedRun], asked: Sequence[int]
) -> None:
  """Writes the pages of runs that are done; ends as signals ask that came."""
  short = [lane.record.step for lane in runs if not lane.record.done]
  if short:
    logging.warning(
      "stopped by a signal at iteration %d; the same command resumes",
      min(short),
    )
  else:
    for lane in runs:
      show(program, lane)
  if short or asked:
    end_by_signal(asked)


def _large_pages() -> str:
  """What is to be said of large pages: an accelerator takes no notice."""
  if jax.default_backend() != "cpu":
    return ""
  libc, _ = platform.libc_ver()
  return large_pages.hint(os.environ, sys.platform, libc)


def check_alike(configs: Sequence[Experiment]) -> None:
  """Refuses runs that one program cannot hold.

  Raises:
    ValueError: saying what is in the way.
  """
  first, *others = configs
  if others and first.mesh.size > 1:
    raise ValueError(
      f"{len(configs)} runs in one program need a mesh of one device: this one "
      f"has {first.mesh.size}"
    )
  for other in others:
    like_first = dataclasses.replace(
      other, seed=first.seed, loss=first.loss, optimizer=first.optimizer
    )
    if (
      like_first != first
      or other.learner_config().static != first.learner_config().static
    ):
      raise ValueError(
        "runs in one program may differ in their seeds, learning rates, clips "
        "and weights of the loss that are not 0, in nothing else"
      )


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
  """Lists the SIGINTs and SIGTERMs that come, instead of ending at once."""
  asked: list[int] = []
  handlers = {
    number: signal.signal(number, lambda n, _: asked.append(n))
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield asked
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def end_by_signal(asked: Sequence[int]) -> NoReturn:
  """Ends as the signals ask that came, or that came to another host."""
  if signal.SIGINT in asked:
    raise KeyboardInterrupt
  sys.exit(128 + signal.SIGTERM)


def advance(
  program: Program,
  runs: list[VmappedRun],
  bar: progress.Progress,
  asked: list[int],
) -> None:
  """Trains runs from the iteration where all stand to the last.

  Args:
    program: theirs.
    runs: changed in place.
    bar: shows the first one's rows.
    asked: filled by signals: then the runs stop early, with a checkpoint.
  """
  records, count = [lane.record for lane in runs], len(runs)
  config, step = records[0].config, records[0].step
  dispatch = _dispatcher(program, records)
  reference = _stack([lane.reference for lane in runs])
  state = _stack([lane.state for lane in runs])
  for lane in runs:  # Not twice in memory.
    lane.reference = lane.state = None

  def write(rows, *, evaluated):
    for i, (record, row) in enumerate(zip(records, rows, strict=True)):
      if evaluated:
        params = _pick((state.params, reference), i, count)
        record.last_eval = measure_run(program, record, params)
        row[-1]["eval"] = record.last_eval
      row[-1] |= callback.report()
    for record, row in zip(records, rows, strict=True):
      record.write(row)
    if processes.leads():
      bar.show(rows[0][-1])

  if step == 0:
    first = [
      {"step": 0, "seconds": 0.0, "ledger": record.ledger.to_dict()}
      for record in records
    ]
    write([[row] for row in first], evaluated=True)
  while step < config.iterations:
    start = time.monotonic()
    # A run that was once shorter gets back to where it saves and evaluates.
    size = min(
      config.iterations_per_call - step % config.iterations_per_call,
      config.iterations - step,
    )
    state, rows = dispatch(state, reference, size)
    step += size
    share = (time.monotonic() - start) / count
    for record, row in zip(records, rows, strict=True):
      check_finite(row, record.folder)
      record.step = step
      record.seconds += share
      row[-1]["seconds"] = round(record.seconds, 3)
    done = step >= config.iterations
    due = config.eval.every and step % config.eval.every == 0
    write(rows, evaluated=done or due)
    last = processes.any_says(bool(asked)) or done
    behind = any([record.behind() for record in records])
    if last or behind or step % config.checkpoint_every == 0:
      for i, record in enumerate(records):
        record.save(_pick(state, i, count), wait=last)
    if last:
      break
  for i, lane in enumerate(runs):
    lane.state, lane.reference = _pick((state, reference), i, count)
    lane.record.end()


def _stack(trees: Sequence[Any]) -> Any:
  """The arrays of several runs, stacked; those of one as they are."""
  first, *others = trees
  return jax.tree.map(lambda *a: jnp.stack(a), *trees) if others else first


def _pick(tree: Any, i: int, count: int) -> Any:
  """What run i of some runs has of what `_stack` made."""
  return jax.tree.map(lambda a: a[i], tree) if count > 1 else tree


def _dispatcher(
  program: Program, records: Sequence[RunState]
) -> Callable[[iteration.TrainState, Any, int], tuple[Any, list[Any]]]:
  """The compiled loop of some runs, from where they stand.

  Args:
    program: theirs.
    records: give the prompts, and count the tokens.

  Returns:
    (state, reference parameters, iterations) -> state, metrics rows of each
    run; of several runs what it takes and gives is stacked.
  """
  together = len(records) > 1
  key = _stack([jax.random.key(record.config.seed) for record in records])
  hypers = [record.config.learner_config().hyper for record in records]
  hyper = _stack([{k: jnp.float32(v) for k, v in h.items()} for h in hypers])
  batches = sharding.over_prompts(program.mesh, leading=1 + together)
  train_loop = iteration.make_train_loop(
    program.graphdef,
    program.task,
    program.config,
    program.mesh,
    together,
    program.search_graphdef,
  )

  def dispatch(state, reference, size):
    prompts = [record.prompts.next_batches(size) for record in records]
    prompts = np.stack(prompts) if together else prompts[0]
    state, metrics = train_loop(
      state, jax.device_put(prompts, batches), reference, hyper, key
    )
    metrics = jax.device_get(metrics)
    return state, [
      to_rows(_pick(metrics, i, len(records)), record.step, record.ledger)
      for i, record in enumerate(records)
    ]

  return dispatch


def measure_run(program: Program, record: RunState, params):
  """Measures a run on held-out problems, in the leading process.

  Args:
    program: the run's.
    record: of the run.
    params: what is trained, and the run's first parameters.
  """
  params = plain(program, *params)
  if not processes.leads():
    return {}
  options, seed = record.config.eval, record.config.seed
  return evaluation.evaluate(
    program.graphdef, params, program.task, program.held_out, options.modes,
    seed=seed, temperature=options.temperature,
  )  # fmt: skip


def plain(program: Program, params, reference):
  """A run's model as this process may compute with it on its own."""
  whole = objective.merged_params(params, reference, program.config)
  return processes.local_copy(whole, sharding.replicated(program.mesh))


def show(program: Program, lane: VmappedRun) -> None:
  """Writes samples.json and report.html of a run that has ended."""
  config, folder = lane.record.config, lane.record.folder
  # The others' arrays are needed for the copies; the rest is the leader's.
  before = processes.local_copy(
    lane.reference, sharding.replicated(program.mesh)
  )
  params = plain(program, lane.state.params, lane.reference)
  if not processes.leads():
    return
  shown = samples.samples(
    program.graphdef,
    params,
    before,
    program.task,
    program.held_out[:SHOWN_PROMPTS],
    program.task.tokenizer,
    config.search,
    seed=config.seed,
  )
  directory.write_whole(
    folder / "samples.json", json.dumps(shown, indent=2) + "\n"
  )
  mode = evaluation.headline(config.eval.modes)
  report.write(folder / "report.html", {config.algorithm: folder}, mode)
