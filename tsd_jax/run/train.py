"""The host loop: compile, dispatch, log, checkpoint, stop.

All work happens in the compiled loop; the host hands it prompts, writes one
metrics row an iteration, and saves what decides the future. A run stopped at
any moment resumes from its last checkpoint and gives the same numbers.

Several runs that differ in their seeds and scalars may go through one program
(`train_vmapped`): small models fill an accelerator that way.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from tsd_jax.base import large_pages, progress, signals
from tsd_jax.base.ledger import Ledger
from tsd_jax.base.types import Prompts
from tsd_jax.learning import iteration, memory
from tsd_jax.learning.config import LearnerConfig
from tsd_jax.learning.iteration import TrainState
from tsd_jax.learning.update import FixedParams, merged_params
from tsd_jax.parallel import processes, sharding
from tsd_jax.rewards import callback
from tsd_jax.run import (
  audit,
  costs,
  evaluation,
  problems,
  reward_params,
  samples,
  tracking,
)
from tsd_jax.run.experiment import Experiment, initial_params, search_model
from tsd_jax.run.state import RunState
from tsd_jax.tasks import data
from tsd_jax.tasks.task import Task, TaskConfig

SHOWN_PROMPTS = 6  # Held-out prompts whose samples and trees are kept.


def to_rows(
  metrics, step: int, ledger: Ledger, reward_tokens: int
) -> list[dict[str, Any]]:
  """Turns a call's stacked metrics, on the host, into a row an iteration.

  Args:
    metrics: of the call; loses its `tokens`.
    step: iterations before it.
    ledger: the run's, to which they are added.
    reward_tokens: what scoring a response takes.
  """
  tokens = metrics.pop("tokens")
  rows = []
  for i in range(len(metrics["loss"])):
    ledger.add(jax.tree.map(lambda a, i=i: a[i], tokens), reward_tokens)
    row = {"step": step + i + 1}
    row |= {name: float(values[i]) for name, values in metrics.items()}
    rows.append(row | {"ledger": ledger.to_dict()})
  return rows


class Shared(NamedTuple):
  """What the runs of one program share."""

  graphdef: Any
  search_graphdef: Any  # None where the search model is a snapshot.
  task: Task
  config: LearnerConfig
  mesh: jax.sharding.Mesh
  held_out: Prompts

  @property
  def layout(self) -> sharding.Layout:
    """The devices that share the held-out problems."""
    return sharding.Layout.of(self.mesh, self.config.mesh)


@dataclasses.dataclass
class VmappedRun:
  """One run of a program."""

  run: RunState
  state: TrainState
  fixed: FixedParams


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
    UserError: for bad input, before anything is compiled, for a run whose
      loss became NaN or infinite, and for one that its audit stops.
    KeyboardInterrupt, SystemExit: after SIGINT, SIGTERM or SIGHUP, once the
      running dispatch has ended and a checkpoint is on disk. A second signal
      ends a command at once.
  """
  return train_vmapped([config], [workdir])[0]


def train_vmapped(
  configs: Sequence[Experiment], workdirs: Sequence[str | pathlib.Path]
) -> list[dict[str, dict[str, Any]]]:
  """Runs or resumes experiments as runs of one program, by vmap.

  A run's folder is that of the run alone, and so are its numbers, up to
  rounding; `host_rewards`, in the first run's rows, counts for all. Runs that
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
  if processes.leads():
    tracking.check(config.log, len(configs))
  mesh = sharding.make_mesh(config.mesh)
  task, learner_config = config.make_task(), config.learner_config()
  needs = check_memory(config, len(configs))
  held_out = data.load_problems(config.task, config.eval.split)
  splits = data.load_splits(config.task)
  digests = data.digests(config.task, splits)

  with contextlib.ExitStack() as stack:
    runs = []
    for c, folder in zip(configs, workdirs, strict=True):
      graphdef, params = initial_params(c)
      params = sharding.place(params, mesh)
      search_graphdef, search_params = search_model(c)
      prompts = data.PromptIterator(
        splits["train"], batch_size=learner_config.prompts, seed=c.seed
      )
      run = stack.enter_context(
        RunState(c, pathlib.Path(folder), prompts, digests)
      )
      fixed = FixedParams(
        jax.tree.map(jnp.copy, params),
        reward_params.read(task.reward, run.folder, keep=True),
      )
      fixed = sharding.place(fixed, mesh)
      state = iteration.init_state(
        learner_config, params, c.seed, search_params
      )
      state = run.resume(sharding.place(state, mesh))
      runs.append(VmappedRun(run, state, fixed))
      # The loop holds them while it runs.
      del params, search_params, state, fixed
    shared = Shared(
      graphdef, search_graphdef, task, learner_config, mesh, held_out
    )
    todo = [r for r in runs if not r.run.finished]
    with signals.requests(progress.current) as asked:
      _advance(shared, todo, needs, asked)
      _finish(shared, todo, asked)
    for r in runs:
      r.run.outcome.check()
    return [r.run.last_eval for r in runs]


def _advance(
  shared: Shared, runs: Sequence[VmappedRun], needs: str, asked: list[int]
) -> None:
  """Trains runs to their ends, those at the same iteration together.

  Args:
    shared: the program.
    runs: those that are not finished.
    needs: what is said of memory.
    asked: filled by signals: then the runs stop early.
  """
  by_step = sorted(runs, key=lambda r: r.run.step)
  for step, same in itertools.groupby(by_step, key=lambda r: r.run.step):
    group = list(same)
    config = group[0].run.config
    with progress.Progress(config.iterations, step) as bar:
      if processes.leads():
        bar.say(needs)
        on_cpu = jax.default_backend() == "cpu"
        bar.say(costs.forecast(config, cpu=on_cpu))
        bar.say(_large_pages(), once=True)
      Group(shared, group, bar, asked).advance()
    if asked:
      break


def _finish(
  shared: Shared, runs: Sequence[VmappedRun], asked: Sequence[int]
) -> None:
  """Writes the pages of runs that are done; ends as signals ask that came."""
  short = [r.run.step for r in runs if not r.run.done]
  if not asked:
    for r in runs:
      r.run.check_audit()
  if short:
    logging.warning(
      "stopped %s at iteration %d; the same command resumes",
      "by a signal" if asked else "as another process asked",
      min(short),
    )
  else:
    with progress.phase("writing the report", quiet=not processes.leads()):
      for r in runs:
        show(shared, r)
  if short or asked:
    signals.end(asked)


def _large_pages() -> str:
  """What is to be said of large pages: an accelerator takes no notice."""
  if jax.default_backend() != "cpu":
    return ""
  libc, _ = platform.libc_ver()
  return large_pages.hint(os.environ, sys.platform, libc)


def check_memory(config: Experiment, runs: int = 1) -> str:
  """Says what a run's search needs of a device.

  Args:
    config: the run.
    runs: runs of that kind in one program.

  Raises:
    UserError: it does not fit.
  """
  return memory.check(
    config.shape,
    config.make_task(),
    config.learner_config(),
    config.mesh,
    search_model=config.search_model,
    runs=runs,
  )


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
  if others and first.audit is not None and first.audit.stop:
    raise ValueError(
      f"an audit that stops a run would stop all {len(configs)} of one "
      "program: set audit.stop=false"
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


class Group:
  """Runs that stand at the same iteration, in one program."""

  def __init__(
    self,
    shared: Shared,
    runs: list[VmappedRun],
    bar: progress.Progress,
    asked: list[int],
  ):
    """Stacks the runs' arrays, and takes them out of the runs.

    Args:
      shared: the program.
      runs: changed in place.
      bar: shows the first one's rows.
      asked: filled by signals: then the runs stop early, with a checkpoint.
    """
    self._shared, self._vmapped, self._bar = shared, runs, bar
    self._runs, self._asked = [r.run for r in runs], asked
    self._told = False  # How long the run goes on.
    self._config, self._step = self._runs[0].config, self._runs[0].step
    self._state = self._stack([r.state for r in runs])
    self._fixed = self._stack([r.fixed for r in runs])
    for r in runs:  # Not twice in memory.
      del r.fixed, r.state
    self._key = self._stack([jax.random.key(r.config.seed) for r in self._runs])
    hypers = [r.config.learner_config().hyper for r in self._runs]
    self._hyper = self._stack(
      [{k: jnp.float32(v) for k, v in h.items()} for h in hypers]
    )
    self._batches = sharding.over_prompts(
      shared.mesh, leading=1 + (len(runs) > 1)
    )
    self._train_loop = iteration.make_train_loop(
      shared.graphdef,
      shared.task,
      shared.config,
      shared.mesh,
      len(runs) > 1,
      shared.search_graphdef,
    )

  def _stack(self, trees):
    first, *others = trees
    if not others:
      return first
    return jax.tree.map(lambda *a: jnp.stack(a), *trees)

  def _pick(self, tree, i):
    return jax.tree.map(lambda a: a[i], tree) if len(self._runs) > 1 else tree

  def advance(self) -> None:
    """Trains the runs to their last iteration, or until a signal asks."""
    if self._step == 0:
      self._start()
    # Before the first call there is nothing to save.
    stopping = self._stopping() or self._done() or self._compile()
    stopping = stopping or self._stopping()
    while not stopping and not self._done():
      stopping = self._call()
    for i, r in enumerate(self._vmapped):
      r.state, r.fixed = self._pick((self._state, self._fixed), i)
      r.run.end()

  def _done(self) -> bool:
    """Whether all is trained: then the report alone may be missing."""
    return self._step >= self._config.iterations

  def _start(self) -> None:
    """Writes the row of what the runs start from."""
    rows = []
    for i, run in enumerate(self._runs):
      row = {"step": 0, "seconds": 0.0, "ledger": run.ledger.to_dict()}
      self._measure(row, i)
      rows.append([row | callback.report()])
    self._write(rows)

  def _compile(self) -> None:
    """Compiles the program before its first call, which finds it."""
    places = [run.prompts.get_state() for run in self._runs]
    with self._phase("compiling"):
      self._train_loop.lower(*self._arguments()).compile()
    for run, place in zip(self._runs, places, strict=True):
      run.prompts.set_state(place)
    self._bar.start()

  @property
  def _size(self) -> int:
    """Iterations of the next call."""
    config, per_call = self._config, self._config.iterations_per_call
    # A run that was once shorter gets back to where it saves and evaluates.
    return min(per_call - self._step % per_call, config.iterations - self._step)

  def _arguments(self):
    """What the program is called with next; takes the prompts."""
    prompts, *others = prompts_of = [
      run.prompts.next_batches(self._size) for run in self._runs
    ]
    if others:
      prompts = jax.tree.map(lambda *a: np.stack(a), *prompts_of)
    prompts = jax.device_put(prompts, self._batches)
    return self._state, prompts, self._fixed, self._hyper, self._key

  def _phase(self, name: str, *, quiet: bool = False):
    return self._bar.phase(name, quiet=quiet or not processes.leads())

  def _call(self) -> bool:
    """Makes some iterations, writes their rows; whether to stop."""
    start, size = time.monotonic(), self._size
    first, last = self._step + 1, self._step + size
    through = (
      f"iteration {last}" if size == 1 else f"iterations {first} to {last}"
    )
    with self._phase(through, quiet=True):
      self._state, metrics = self._train_loop(*self._arguments())
      metrics = jax.device_get(metrics)
    rows = [
      to_rows(
        self._pick(metrics, i),
        self._step,
        run.ledger,
        self._shared.config.reward_tokens,
      )
      for i, run in enumerate(self._runs)
    ]
    for run, made in zip(self._runs, rows, strict=True):
      run.add_rates(made)
    self._step += size
    seconds = time.monotonic() - start
    self._say_what_is_left(seconds / size)
    share = seconds / len(self._runs)
    self._close_rows(rows, share)
    self._write(rows)
    return self._save()

  def _say_what_is_left(self, seconds: float) -> None:
    """Says it once, after the first call, where there is more to do."""
    told, self._told = self._told, True
    left = self._config.iterations - self._step
    if left and processes.leads() and not told:
      self._bar.say(costs.remaining(seconds, left))

  def _close_rows(self, rows, seconds: float) -> None:
    """Adds to the last row of every run what is known once a call."""
    step, every, done = self._step, self._config.eval.every, self._done()
    for i, (run, row) in enumerate(zip(self._runs, rows, strict=True)):
      run.check_rows(row)
      run.step = step
      run.seconds += seconds
      row[-1]["seconds"] = round(run.seconds, 3)
      if done or (every and step % every == 0):
        self._measure(row[-1], i)
      row[-1] |= callback.report()

  def _measure(self, row, i: int) -> None:
    params, fixed = self._pick((self._state.params, self._fixed), i)
    run = self._runs[i]
    with self._phase("evaluating"):
      params = merged_params(params, fixed.reference, self._shared.config)
      found, solved = measure_run(self._shared, run, params, fixed)
      if run.detector is not None:
        row |= audit_run(self._shared, run, params, fixed)
    run.last_eval = row["eval"] = found
    run.check_rows([row])
    run.keep_problems(solved, lambda: asked(self._shared, run.config.task))

  def _write(self, rows) -> None:
    for run, row in zip(self._runs, rows, strict=True):
      run.write(row)
    if processes.leads():
      self._bar.show(rows[0][-1])

  def _stopping(self) -> bool:
    """Whether a signal has come to any process, or an audit ends a run."""
    suspected = any(run.suspected for run in self._runs)
    return processes.any_says(bool(self._asked) or suspected)

  def _save(self) -> bool:
    """Saves the runs where it is time; whether to stop."""
    stopping = self._stopping()
    behind = any([run.behind() for run in self._runs])
    last = self._done() or stopping
    if last or behind or self._step % self._config.checkpoint_every == 0:
      for i, run in enumerate(self._runs):
        run.save(self._pick(self._state, i), wait=last)
    return last


def measure_run(shared: Shared, run: RunState, params, fixed: FixedParams):
  """Measures a run on held-out problems; all processes do.

  Args:
    shared: the run's program.
    run: the run.
    params: its whole model.
    fixed: what is not trained.
  """
  options, seed = run.config.eval, run.config.seed
  return evaluation.evaluate_each(
    shared.graphdef, params, shared.task, shared.held_out, options.modes,
    seed=seed, temperature=options.temperature, search=run.config.search,
    reward_params=fixed.reward, layout=shared.layout,
  )  # fmt: skip


def audit_run(shared: Shared, run: RunState, params, fixed: FixedParams):
  """Has a run's audit judge it; fields of a row, in all processes.

  Args:
    shared: the run's program.
    run: the run.
    params: its whole model.
    fixed: what is not trained.
  """
  assert run.config.audit is not None
  search = shared.config.search if shared.config.searches else None
  found = audit.measure(
    shared.graphdef, params, fixed.reference, shared.task, shared.held_out,
    run.config.audit, search, step=run.step, seed=run.config.seed,
    reward_params=fixed.reward, layout=shared.layout,
  )  # fmt: skip
  return {"audit": run.audited(found)}


def asked(shared: Shared, task: TaskConfig) -> problems.Asked:
  """The held-out prompts as text, and the families of problems."""
  decode = shared.task.tokenizer.decode
  prompts_QP = np.asarray(shared.held_out.tokens_BP)
  texts = [decode(prompt_P) for prompt_P in prompts_QP]
  return texts, np.asarray(data.groups(task, shared.held_out))


def show(shared: Shared, ended: VmappedRun) -> None:
  """Writes samples.json and report.html of a run that has ended."""
  config = ended.run.config
  before = ended.fixed.reference
  shown = samples.samples(
    shared.graphdef,
    merged_params(ended.state.params, before, shared.config),
    before,
    shared.task,
    shared.held_out[:SHOWN_PROMPTS],
    shared.task.tokenizer,
    config.search,
    seed=config.seed,
    reward_params=ended.fixed.reward,
    layout=shared.layout,
  )
  processes.by_the_leader(lambda: ended.run.finish(shown))
