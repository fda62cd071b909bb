"""Experiments: trained, read back, measured and exported."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection
from typing import Any

from tsd_jax.api.model import Model
from tsd_jax.base import names, progress
from tsd_jax.base.errors import UserError
from tsd_jax.base.ledger import Ledger
from tsd_jax.base.temperature import ALLOWED, is_allowed
from tsd_jax.models import hf, weights
from tsd_jax.parallel.sharding import HERE, Layout
from tsd_jax.run import directory, evaluation, load, reward_params
from tsd_jax.run import train as train_lib
from tsd_jax.run.experiment import EvalConfig, Experiment, read_init
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks import data
from tsd_jax.tasks.task import TaskConfig

# What JAX, Orbax and tensorflow-datasets log is of no use here; asked for once.
_quiet = functools.cache(progress.quiet_libraries)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
  """A trained run, as its newest whole checkpoint has it.

  Attributes:
    workdir: its folder.
    config: the experiment.
    model: the policy.
    step: iterations made.
    ledger: tokens that they read.
  """

  workdir: pathlib.Path
  config: Experiment
  model: Model
  step: int
  ledger: Ledger

  def __repr__(self) -> str:
    return (
      f"Run({self.workdir}: {self.config.algorithm}, iteration {self.step} of "
      f"{self.config.iterations}, {self.model!r})"
    )

  @property
  def metrics(self) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, one an iteration."""
    return directory.read_rows(self.workdir)

  def start(self) -> Model:
    """The model that it started from.

    Raises:
      UserError: `config.init` cannot be read any more.
    """
    graphdef, params, trained = read_init(self.config)
    return dataclasses.replace(
      self.model,
      name=f"the start of {self.workdir}",
      graphdef=graphdef,
      params=params,
      value_trained=trained,
    )


def load_run(
  workdir: str | pathlib.Path, *, imports: Collection[str] = ()
) -> Run:
  """Reads a run's newest whole checkpoint; changes nothing on disk.

  Args:
    workdir: its folder; the run may still be going on.
    imports: modules and .py files that may be run because its config.json names
      them: those of its own reward or task. tsd_jax, experiments, and what a
      config of this process named may be anyway.

  Raises:
    UserError: there is no run, or no checkpoint yet.
  """
  _quiet()
  names.allow(imports)
  workdir = pathlib.Path(workdir).expanduser()
  opened = load.open_run(workdir)
  config = opened.config
  model = Model(
    f"iteration {opened.step} of {workdir}",
    config.shape,
    opened.graphdef,
    opened.params,
    config.make_task().tokenizer,
    load.max_positions(config),
    weights.value_trained(opened.params),
  )
  return Run(workdir, config, model, opened.step, opened.ledger)


def train(experiment: Experiment, workdir: str | pathlib.Path) -> Run:
  """Trains, or goes on where the folder has a checkpoint.

  Args:
    experiment: the run.
    workdir: its folder: config.json, metrics.jsonl, checkpoints/, and at the
      end samples.json and report.html.

  Returns:
    The finished run.

  Raises:
    UserError: for bad input, before anything is compiled, and for a run whose
      loss became NaN or infinite.
    KeyboardInterrupt: after Ctrl-C, with a checkpoint on disk: the same call
      goes on.
  """
  _quiet()
  workdir = pathlib.Path(workdir).expanduser()
  train_lib.train(experiment, workdir)
  return load_run(workdir)


def evaluate(
  model: Model | Run,
  task: TaskConfig | None = None,
  *,
  modes: str | None = None,
  split: str | None = None,
  temperature: float | None = None,
  search: SearchConfig | None = None,
  max_problems: int | None = None,
  seed: int | None = None,
) -> dict[str, dict[str, Any]]:
  """Measures a model, or a run's, on held-out problems.

  Args:
    model: a model, or a run, which knows its task and how it was evaluated. On
      its own task it is measured on its mesh, where there are as many devices.
    task: the problems and their reward; a run's own by default.
    modes: greedy, mean@K, pass@K, best@K, vote@K, search@N; several with
      commas (`tsd_jax/run/evaluation.py`). By default a run's own, else
      "greedy,mean@16".
    split: train, validation (by default) or test.
    temperature: of sampling, above 0.
    search: how search@N searches.
    max_problems: the first of the split only.
    seed: of sampling.

  Returns:
    mode -> accuracy, stderr over problems, n, tokens, reward; split, step,
    temperature and seed, as in a run's eval.json. Nothing is written.

  Raises:
    UserError: an argument does not fit, or a reward cannot be computed.
  """
  _quiet()
  run = model if isinstance(model, Run) else None
  policy = model.model if isinstance(model, Run) else model
  own = EvalConfig() if run is None else run.config.eval
  if task is not None:
    config, made = task, task.make()
  elif run is not None:
    config, made = run.config.task, run.config.make_task()
  else:
    raise UserError("a model is measured on a task: give its config")
  theirs, mine = made.tokenizer.vocab_size, policy.tokenizer.vocab_size
  if theirs != mine:
    raise UserError(
      f"task {made.name} has {theirs} tokens, {policy.name} {mine}: its "
      "tokenizer must be the model's"
    )
  split = own.split if split is None else split
  temperature = own.temperature if temperature is None else temperature
  seed = (run.config.seed if run else 0) if seed is None else seed
  if not is_allowed(temperature):
    raise UserError(f"{temperature=} must be {ALLOWED}; or use modes='greedy'")
  if max_problems is not None and max_problems < 1:
    raise UserError(f"{max_problems=} must be at least 1")
  modes = own.modes if modes is None else modes
  search = search or (run.config.search if run else SearchConfig())
  layout = HERE
  if run is not None and task is None:
    layout = Layout.where_it_fits(run.config.mesh)
  results = evaluation.evaluate(
    policy.graphdef,
    layout.place(policy.params),
    made,
    data.load_problems(config, split)[slice(max_problems)],
    modes,
    seed=seed,
    temperature=temperature,
    search=search,
    reward_params=(
      reward_params.read(made.reward, run.workdir)
      if run and task is None
      else made.reward.load()
    ),
    layout=layout,
  )
  step = run.step if run else 0
  facts = dict(split=split, step=step, temperature=temperature, seed=seed)
  return {mode: result | facts for mode, result in results.items()}


def export(
  model: Model | Run,
  folder: str | pathlib.Path,
  *,
  dtype: hf.Dtype = "float32",
) -> pathlib.Path:
  """Writes a folder that transformers and `load_model` read.

  Args:
    model: a model, or a run, whose policy is written.
    folder: a new one.
    dtype: of the tensors.

  Returns:
    The folder.

  Raises:
    UserError: if the folder holds something.
  """
  model = model.model if isinstance(model, Run) else model
  folder = pathlib.Path(folder).expanduser()
  if model.max_positions is None:
    raise UserError(f"{model.name} does not say how many positions it has")
  hf.save(
    folder,
    model.config,
    model.params,
    model.tokenizer,
    max_length=model.max_positions,
    dtype=dtype,
    value_trained=model.value_trained,
  )
  return folder
