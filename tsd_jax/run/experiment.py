"""A whole run as one config: what it takes, and what it refuses to be."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from tsd_jax.base import choices, paths, temperature
from tsd_jax.base.errors import UserError, divisors, multiples, refuse
from tsd_jax.inference.rollout import RolloutConfig, Sampler
from tsd_jax.learning import methods
from tsd_jax.learning.config import LearnerConfig, LossConfig, OptimizerConfig
from tsd_jax.models import hf, pretrained, transformer, weights
from tsd_jax.models.flops import flops_per_token
from tsd_jax.models.lora import NO_ADAPTERS, LoraConfig
from tsd_jax.parallel import sharding
from tsd_jax.rewards.audited import Audited
from tsd_jax.rewards.reward import Reward, check_range
from tsd_jax.run import tracking
from tsd_jax.run.hacking import Audit
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import RewardFn, Shaped, Task, TaskConfig, rewarded


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation during and after a run."""

  every: int = 10  # Iterations; 0: at the start and the end only.
  modes: str = "greedy,mean@16"
  split: str = "validation"
  temperature: float = 1.0

  def __post_init__(self):
    """Refuses what nothing can be measured at."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    if self.every < 0:
      yield f"eval.every={self.every} must not be negative"
    if not temperature.is_allowed(self.temperature):
      yield (
        f"eval.temperature={self.temperature} must be {temperature.ALLOWED}; "
        "for argmax decoding use eval.modes=greedy"
      )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A whole run."""

  task: TaskConfig
  model: transformer.ModelConfig | None = None  # None: the one of `init`.
  seed: int = 0
  algorithm: methods.Algorithm = "tsd"
  iterations: int = 60
  iterations_per_call: int = (
    5  # Iterations in one dispatch; keep a dispatch under 20 s.
  )
  checkpoint_every: int = 10
  refresh_every: int = 1  # Search model <- policy; 0 keeps it frozen.
  # Parameters to start from: a safetensors file of our own, or a published
  # model (a Hugging Face folder or a GGUF file).
  init: str | None = None
  # A search model of its own, in place of a snapshot of the policy: frozen,
  # with the same tokens, of any shape. None: the policy's shape, or that of a
  # published `search_init`.
  search_init: str | None = None
  search_model: transformer.ModelConfig | None = None
  # Replaces the task's own: a reward, or a function in JAX of (prompts,
  # tokens_BGT, the task's own score) that returns another score.
  reward: Reward | RewardFn | None = None
  # A second verifier, which judges and never pays, and when it warns.
  audit: Audit | None = None
  rollout: RolloutConfig | Sampler = RolloutConfig()
  search: SearchConfig = SearchConfig()
  loss: LossConfig = LossConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  eval: EvalConfig = EvalConfig()
  # Services that get the rows too: tensorboard, wandb, trackio, mlflow, several
  # with commas.
  log: str = ""
  lora: LoraConfig = NO_ADAPTERS
  mesh: sharding.MeshConfig = sharding.ONE_DEVICE

  def __post_init__(self):
    """Refuses what cannot run, before anything is compiled."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    if not isinstance(self.task, TaskConfig):
      yield (
        f"task={self.task!r} is no task config: use CountdownConfig(...), "
        "MazeConfig(...) or another subclass of tasks.task.TaskConfig"
      )
      return
    if unknown := list(choices.violations(self)):
      yield from unknown
      return  # What follows asks them.
    if self.model is None:
      if self.init is None or not pretrained.is_pretrained(self.init):
        yield (
          f"model=none is read from a published model, which init={self.init} "
          "is not: name a Hugging Face folder or a .gguf file"
        )
        return
      card = pretrained.read_card(find_init(self.init))
      object.__setattr__(self, "model", card.config)
    yield from self._search_model_violations()
    yield from self._count_violations()
    yield from tracking.violations(self.log)
    if self.search.too_many_candidates(self.shape.vocab_size):
      yield (
        f"search.num_candidates={self.search.num_candidates} exceeds "
        f"model.vocab_size={self.shape.vocab_size}"
      )
    try:
      learner = self.learner_config()
    except ValueError as error:
      yield str(error)
    else:
      yield from self._split_violations(learner)
    for name in ("model", "search_model"):
      yield from self._shape_violations(name)
    yield from self._task_violations()

  def _task_violations(self) -> Iterator[str]:
    """A task that the model cannot read, or whose reward has no range."""
    task = self.make_task()
    try:
      check_range(task.reward)
    except ValueError as error:
      yield str(error)
    if odd := task.reward.misreads(task.tokenizer):
      yield odd
    if task.vocab_size > self.shape.vocab_size:
      yield (
        f"model.vocab_size={self.shape.vocab_size} is smaller than the "
        f"task's {task.vocab_size}"
      )

  def _count_violations(self) -> Iterator[str]:
    """Iterations that are no whole number of calls."""
    wrong = [
      f"{field}={getattr(self, field)} must be at least 1"
      for field in ("iterations", "iterations_per_call", "checkpoint_every")
      if getattr(self, field) < 1
    ]
    if not 0 <= self.seed < 2**32:
      wrong.append(f"seed={self.seed} must be an integer in 0..2**32-1")
    yield from wrong
    if wrong:
      return
    for field, value in (
      ("checkpoint_every", self.checkpoint_every),
      ("eval.every", self.eval.every),
    ):
      if value % self.iterations_per_call:
        yield (
          f"{field}={value} must be a multiple of iterations_per_call="
          f"{self.iterations_per_call}: use "
          + multiples(value, self.iterations_per_call)
        )

  def _search_model_violations(self) -> Iterator[str]:
    """A search model that cannot teach; fills in its shape."""
    if self.search_init is None:
      if self.search_model is not None:
        yield "search_model has no parameters: name them with search_init"
      return
    if self.refresh_every:
      yield (
        f"refresh_every={self.refresh_every} would put the policy in place of "
        f"search_init={self.search_init}: set refresh_every=0"
      )
    found = self.search_model or self.shape
    if self.search_model is None:
      if pretrained.is_pretrained(self.search_init):
        found = pretrained.read_card(find_init(self.search_init)).config
      object.__setattr__(self, "search_model", found)
    theirs, own = found.vocab_size, self.shape.vocab_size
    if theirs != own:
      yield (
        f"search_model.vocab_size={theirs} is not model.vocab_size={own}: a "
        "search model must read and write the policy's tokens"
      )

  def _shape_violations(self, name: str) -> Iterator[str]:
    """A model that the mesh cannot split."""
    for field, axis in (
      ("d_model", "fsdp"),
      ("num_heads", "tensor"),
      ("d_mlp", "tensor"),
      ("vocab_size", "tensor"),
    ):
      size = getattr(getattr(self, name), field, 0)
      parts = getattr(self.mesh, axis)
      if size % parts:
        yield (
          f"{name}.{field}={size} must be a multiple of mesh.{axis}={parts}: "
          f"use mesh.{axis}={divisors(size, parts)[-1]}"
        )

  def _split_violations(self, learner: LearnerConfig) -> Iterator[str]:
    """Prompts that the mesh cannot split."""
    parts = self.mesh.batch_size
    for field, count in (
      ("rollout.prompts", learner.rollout.prompts),
      ("rollout.trained_prompts", learner.rollout.trained_prompts),
      ("loss.distilled_prompts", learner.distilled_prompts),
    ):
      minibatch = count // self.optimizer.minibatches
      if minibatch % parts:
        yield (
          f"a minibatch of {minibatch} prompts ({field} / "
          f"optimizer.minibatches) must be a multiple of the {parts} devices "
          "that it is split over (mesh.slice x mesh.data x mesh.fsdp): use "
          f"{field}={multiples(count, parts * self.optimizer.minibatches)}"
        )
    own = learner.prompts // self.mesh.shards
    block = self.search.block(own)
    if learner.searches and (not block or own % block):
      fits = max(divisors(own, block), default=1)
      yield (
        f"the {own} prompts that each part searches (rollout.prompts times "
        f"search.width / {self.mesh.shards} parts) must be a multiple of "
        f"search.trees={self.search.trees}: use search.trees={fits}"
      )

  @property
  def shape(self) -> transformer.ModelConfig:
    """The policy's: `model`, filled in where `init` says it."""
    assert self.model is not None
    return self.model

  def make_task(self, config: TaskConfig | None = None) -> Task:
    """The task with the run's reward, audited where the run is.

    Args:
      config: another task of the kind, in place of the run's.
    """
    task, reward = (config or self.task).make(), self.reward
    if reward is not None and not isinstance(reward, Reward):
      reward = Shaped(task.reward, reward)
    own, tokenizer = task.reward, task.tokenizer
    paid = own if reward is None else reward.bind(own, tokenizer)
    if self.audit is not None:
      paid = Audited(paid, self.audit.verifier.bind(own, tokenizer))
    if paid == own:
      return task
    return rewarded(task, paid, alike=reward is None)

  @property
  def evaluations(self) -> int:
    """How often the run is evaluated, the start included."""
    every = self.eval.every or self.iterations
    return 1 + math.ceil(self.iterations / every)

  def learner_config(self) -> LearnerConfig:
    """What the compiled loop depends on."""
    task = self.make_task()
    return methods.resolve(
      self.algorithm,
      task,
      rollout=self.rollout,
      search=self.search,
      loss=self.loss,
      optimizer=self.optimizer,
      refresh_every=self.refresh_every,
      iterations=self.iterations,
      lora=self.lora,
      mesh=self.mesh,
      reward_tokens=reward_tokens(self.shape, task),
    )


def reward_tokens(model: transformer.ModelConfig, task: Task) -> int:
  """Operations of scoring one response, as tokens that the policy runs."""
  flops = task.reward.flops(task.prompt_length, task.response_length)
  return math.ceil(flops / flops_per_token(model))


def initial_params(config: Experiment) -> tuple[Any, Any]:
  """The structure and the parameters that a run starts from.

  Raises:
    UserError: if `init` cannot be read, or has fewer positions than the task
      needs, or its V_search was never trained but the search values leaves by
      it.
  """
  graphdef, params, trained = read_init(config)
  if config.search_init is None:
    _check_value(config, "init", trained)
  return graphdef, params


def read_init(config: Experiment) -> tuple[Any, Any, bool]:
  """What a run starts from, and whether its V_search was ever trained.

  Raises:
    UserError: if `init` cannot be read, or has fewer positions than the task
      needs.
  """
  _check_positions(config, "init")
  return _read(config.init, config.shape, config.seed)


def search_model(config: Experiment) -> tuple[Any, Any]:
  """The same of the search model; two Nones where it is a snapshot.

  Raises:
    UserError: as `initial_params`, for `search_init`.
  """
  if config.search_init is None or config.search_model is None:
    return None, None
  _check_positions(config, "search_init")
  graphdef, params, trained = _read(
    config.search_init, config.search_model, config.seed
  )
  _check_value(config, "search_init", trained)
  return graphdef, params


def _check_positions(config: Experiment, field: str) -> None:
  """Refuses to go beyond the positions that a model was trained on."""
  init, task = getattr(config, field), config.make_task()
  if init is None or not pretrained.is_pretrained(init):
    return
  most = pretrained.read_card(find_init(init)).max_length
  needed = task.prompt_length + task.response_length
  if most is not None and needed > most:
    raise UserError(
      f"task.prompt_length={task.prompt_length} and task.response_length="
      f"{task.response_length} exceed the {most} positions of {field}={init}: "
      f"shorten them to {most} tokens in all"
    )


def _read(init: str | None, model: transformer.ModelConfig, seed: int):
  """Structure, parameters, and whether their V_search was ever trained."""
  if init is not None and pretrained.is_pretrained(init):
    path = find_init(init)
    _, graphdef, params = pretrained.load(path, config=model)
    return graphdef, params, hf.value_trained(path)
  graphdef, params = transformer.create(model, seed)
  if init is None:
    return graphdef, params, False
  params, metadata = weights.load(find_init(init), params)
  return graphdef, params, metadata.get("value_trained") == "true"


def _check_value(config: Experiment, field: str, trained: bool) -> None:
  """Refuses to value leaves by what was never trained."""
  searches = config.learner_config().searches
  if searches and config.search.needs_value and not trained:
    raise UserError(
      f"search.leaf={config.search.leaf} values leaves by V_search, which "
      f"{field}={getattr(config, field)} never trained: use "
      "search.leaf=rollout or none, or start from parameters whose V_search "
      "was trained"
    )


def find_init(init: str) -> pathlib.Path:
  """A path as given, or else below the repository's root."""
  path = paths.named(init)
  return path if path.is_absolute() or path.exists() else paths.ROOT / path
