"""The host loop: compile, dispatch, log, checkpoint, stop.

All work happens in the compiled chunk; the host hands it prompts, writes one
metrics row an iteration, and saves what decides the future. A run stopped at
any moment resumes from its last checkpoint and gives the same numbers.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from tsd_jax import (
  data,
  evaluate,
  learner,
  memory,
  methods,
  processes,
  progress,
  report,
  samples,
  sharding,
)
from tsd_jax import workdir as workdir_lib
from tsd_jax.checkpoint import Checkpointer
from tsd_jax.config import UserError
from tsd_jax.ledger import Ledger
from tsd_jax.models import hf, pretrained, transformer, weights
from tsd_jax.rewards import callback
from tsd_jax.rollout import RolloutConfig
from tsd_jax.search.tree import SearchConfig
from tsd_jax.tasks.countdown import CountdownConfig
from tsd_jax.tasks.task import Rewarded, RewardFn, Task, TaskConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation during and after a run."""

  every: int = 10  # Iterations; 0 evaluates at the end only.
  modes: str = "greedy,mean@16"
  split: str = "validation"
  temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole run."""

  # Any task; a config.json that does not name its task holds the first one.
  task: CountdownConfig | TaskConfig
  model: transformer.ModelConfig | None = None  # None: the one of `init`.
  seed: int = 0
  algorithm: methods.Algorithm = "tsd"
  iterations: int = 60
  chunk: int = 5  # Iterations in one dispatch; keep a dispatch under 20 s.
  checkpoint_every: int = 10
  refresh_every: int = 1  # Search model <- policy; 0 keeps it frozen.
  # Parameters to start from: a safetensors file of our own, or a published
  # model (a Hugging Face folder or a GGUF file).
  init: str | None = None
  reward: RewardFn | None = None  # Replaces the task's own; see tasks/task.py.
  rollout: RolloutConfig = RolloutConfig()
  search: SearchConfig = SearchConfig()
  loss: methods.LossConfig = methods.LossConfig()
  optimizer: methods.OptimizerConfig = methods.OptimizerConfig()
  eval: EvalConfig = EvalConfig()
  mesh: sharding.MeshConfig = sharding.MeshConfig()

  def __post_init__(self):
    """Refuses what cannot run, before anything is compiled."""
    if not isinstance(self.task, TaskConfig):
      raise ValueError(
        f"task={self.task!r} is no task config: use CountdownConfig(...), "
        "MazeConfig(...) or another subclass of tasks.task.TaskConfig"
      )
    if self.model is None:
      if self.init is None or not pretrained.is_pretrained(self.init):
        raise ValueError(
          f"model=none is read from a published model, which init={self.init} "
          "is not: name a Hugging Face folder or a .gguf file"
        )
      card = pretrained.read_card(find_init(self.init))
      object.__setattr__(self, "model", card.config)
    for field in ("iterations", "chunk", "checkpoint_every"):
      if getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
    for field, value in (
      ("checkpoint_every", self.checkpoint_every),
      ("eval.every", self.eval.every),
    ):
      if value % self.chunk:
        raise ValueError(
          f"{field}={value} must be a multiple of chunk={self.chunk}"
        )
    if self.search.num_candidates > self.model.vocab_size:
      raise ValueError(
        f"search.num_candidates={self.search.num_candidates} exceeds "
        f"model.vocab_size={self.model.vocab_size}"
      )
    self._check_split(self.learner_config())
    for field, axis in (
      ("d_model", "fsdp"),
      ("num_heads", "tensor"),
      ("d_mlp", "tensor"),
      ("vocab_size", "tensor"),
    ):
      size, parts = getattr(self.model, field), getattr(self.mesh, axis)
      if size % parts:
        raise ValueError(
          f"model.{field}={size} must be a multiple of mesh.{axis}={parts}"
        )
    task = self.make_task()
    if task.vocab_size > self.model.vocab_size:
      raise ValueError(
        f"model.vocab_size={self.model.vocab_size} is smaller than the "
        f"task's {task.vocab_size}"
      )

  def _check_split(self, learner: methods.LearnerConfig) -> None:
    """Refuses prompts that the mesh cannot split."""
    parts = self.mesh.batch_size
    for field, count in (
      ("rollout.prompts", learner.rollout.prompts),
      ("loss.lessons", learner.lessons),
    ):
      minibatch = count // self.optimizer.minibatches
      if minibatch % parts:
        raise ValueError(
          f"a minibatch of {minibatch} prompts ({field} / "
          f"optimizer.minibatches) must be a multiple of the {parts} devices "
          "that it is split over (mesh.slice x mesh.data x mesh.fsdp)"
        )
    own = learner.prompts // parts
    if learner.searches and own % min(self.search.trees, own):
      raise ValueError(
        f"the {own} prompts that each device searches (rollout.prompts times "
        f"search.width / {parts} devices) must be a multiple of "
        f"search.trees={self.search.trees}"
      )

  def make_task(self) -> Task:
    """The task with the run's reward."""
    task = self.task.make()
    return task if self.reward is None else Rewarded(task, self.reward)

  def learner_config(self) -> methods.LearnerConfig:
    """What the compiled loop depends on."""
    return methods.resolve(
      self.algorithm,
      self.make_task(),
      rollout=self.rollout,
      search=self.search,
      loss=self.loss,
      optimizer=self.optimizer,
      refresh_every=self.refresh_every,
      iterations=self.iterations,
    )


SHOWN_PROMPTS = 6  # Held-out prompts whose samples and trees are kept.


def initial_params(config: Experiment):
  """The structure and the parameters that a run starts from.

  Raises:
    UserError: if `init` cannot be read, or its V_search was never trained but
      the search values leaves by it.
  """
  trained = False
  if config.init is not None and pretrained.is_pretrained(config.init):
    path = find_init(config.init)
    _, graphdef, params = pretrained.load(path, config=config.model)
    trained = hf.value_trained(path)
  else:
    graphdef, params = transformer.create(config.model, config.seed)
    if config.init is not None:
      params, metadata = weights.load(find_init(config.init), params)
      trained = metadata.get("value_trained") == "true"
  searches = config.learner_config().searches
  if searches and config.search.needs_value and not trained:
    raise UserError(
      f"search.leaf={config.search.leaf} values leaves by V_search, which "
      f"init={config.init} never trained: use search.leaf=rollout or none, or "
      "start from parameters whose V_search was trained"
    )
  return graphdef, params


def find_init(init: str) -> pathlib.Path:
  """A path as given, or else below the repository's root."""
  path = pathlib.Path(init).expanduser()
  root = pathlib.Path(__file__).resolve().parent.parent
  return path if path.is_absolute() or path.exists() else root / path


def check_finite(rows: list[dict[str, Any]]) -> None:
  """Stops a run whose numbers broke.

  Raises:
    UserError: naming the metric and the iteration.
  """
  for row in rows:
    bad = [
      k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)
    ]
    if bad:
      raise UserError(
        f"iteration {row['step']}: {', '.join(bad)} became "
        f"{row[bad[0]]}; the last checkpoint is kept. Try a lower "
        "--config.optimizer.learning_rate or --config.loss.clip_high"
      )


def to_rows(metrics, step: int, ledger: Ledger) -> list[dict[str, Any]]:
  """Turns a chunk's stacked metrics into one row an iteration."""
  metrics = jax.device_get(metrics)
  tokens = metrics.pop("tokens")
  rows = []
  for i in range(len(metrics["loss"])):
    ledger.add(jax.tree.map(lambda a, i=i: a[i], tokens))
    row = {"step": step + i + 1}
    row |= {name: float(values[i]) for name, values in metrics.items()}
    rows.append(row | {"ledger": ledger.to_dict()})
  return rows


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
  workdir = pathlib.Path(workdir)
  evaluate.parse_modes(config.eval.modes)
  mesh = sharding.make_mesh(config.mesh)
  everywhere = sharding.replicated(mesh)
  task, learner_config = config.make_task(), config.learner_config()
  search_needs = memory.check(config.model, task, learner_config, config.mesh)
  graphdef, params = initial_params(config)
  held_out = data.load_problems(config.task, config.eval.split)
  prompts = data.PromptIterator(
    data.load_problems(config.task, "train"),
    batch_size=learner_config.prompts,
    seed=config.seed,
  )

  lock = contextlib.nullcontext()
  if processes.leads():
    # A learning rate that has fallen to 0 does not rise again.
    fixed = config.optimizer.linear_decay
    workdir_lib.prepare(config, workdir, fixed_length=fixed)
    lock = workdir_lib.sole_writer(workdir)
  with lock:
    reference = sharding.place(jax.tree.map(jnp.copy, params), mesh)
    state = sharding.place(learner.init_state(learner_config, params), mesh)
    ledger, step, seconds, last_eval = Ledger(), 0, 0.0, {}
    checkpointer = Checkpointer(workdir)
    restored = checkpointer.restore(state._asdict())
    if restored is not None:
      arrays, record = restored
      state = learner.TrainState(**arrays)
      step, seconds = record["step"], record["seconds"]
      ledger, last_eval = Ledger(**record["ledger"]), record["eval"]
      prompts.set_state(record["prompts"])
      finished = step >= config.iterations
      if finished and (workdir / "report.html").exists():
        checkpointer.close()
        return last_eval
      logging.warning("resuming %s at iteration %d", workdir, step)
    log = None
    if processes.leads():
      # It is there if and only if the run is finished.
      (workdir / "report.html").unlink(missing_ok=True)
      # Without a checkpoint even the start's row is written again.
      workdir_lib.keep_rows(workdir / "metrics.jsonl", step if restored else -1)
      log = workdir_lib.RowLog(workdir / "metrics.jsonl")

    hyper = {k: jnp.float32(v) for k, v in learner_config.hyper.items()}
    key = jax.random.key(config.seed)
    train_chunk = learner.make_train_chunk(graphdef, task, learner_config, mesh)

    def measure(params):
      params = processes.local_copy(params, everywhere)
      if log is None:
        return {}
      return evaluate.evaluate(
        graphdef, params, task, held_out, config.eval.modes,
        seed=config.seed, temperature=config.eval.temperature,
      )  # fmt: skip

    def save(write):
      record = dict(
        step=step,
        seconds=seconds,
        ledger=dataclasses.asdict(ledger),
        prompts=prompts.get_state(),
        eval=last_eval,
      )
      write(step, state._asdict(), record)

    asked = []
    handlers = {
      number: signal.signal(number, lambda n, _: asked.append(n))
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
      with progress.Progress(config.iterations, step) as bar:
        bar.say(search_needs if processes.leads() else "")
        if step == 0:
          last_eval = measure(state.params)
          row = {"step": 0, "seconds": 0.0, "ledger": ledger.to_dict()}
          row |= {"eval": last_eval} | callback.report()
          if log is not None:
            log.write([row])
            bar.show(row)
        while step < config.iterations:
          start = time.monotonic()
          size = min(config.chunk, config.iterations - step)
          prompt_CBP = jax.device_put(
            prompts.next_chunk(size), sharding.over_prompts(mesh, leading=1)
          )
          state, metrics = train_chunk(state, prompt_CBP, reference, hyper, key)
          rows = to_rows(metrics, step, ledger)
          check_finite(rows)
          step += size
          seconds += time.monotonic() - start
          rows[-1]["seconds"] = round(seconds, 3)
          done = step >= config.iterations
          if done or (config.eval.every and step % config.eval.every == 0):
            last_eval = measure(state.params)
            rows[-1]["eval"] = last_eval
          rows[-1] |= callback.report()
          if log is not None:
            log.write(rows)
            bar.show(rows[-1])
          stopping = processes.any_says(bool(asked))
          if done or stopping:
            save(checkpointer.save_now)
            break
          behind = processes.any_says(checkpointer.behind())
          if behind or step % config.checkpoint_every == 0:
            save(checkpointer.save)
      if log is not None:
        log.finish()
    finally:
      for number, handler in handlers.items():
        signal.signal(number, handler)
      checkpointer.close()
    if step < config.iterations:
      logging.warning(
        "stopped by a signal at iteration %d; the same command resumes", step
      )
      if signal.SIGINT in asked:
        raise KeyboardInterrupt
      sys.exit(128 + signal.SIGTERM)
    # The others' arrays are needed for the copies; the rest is the leader's.
    before, params = processes.local_copy((reference, state.params), everywhere)
    if log is None:
      return last_eval
    shown = samples.samples(
      graphdef,
      params,
      before,
      task,
      held_out[:SHOWN_PROMPTS],
      task.tokenizer,
      config.search,
      seed=config.seed,
    )
    workdir_lib.write_whole(
      workdir / "samples.json", json.dumps(shown, indent=2) + "\n"
    )
    mode = evaluate.headline(config.eval.modes)
    report.write(workdir / "report.html", {config.algorithm: workdir}, mode)
    return last_eval
