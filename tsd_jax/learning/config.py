"""What the learner needs to know: the loss, the optimiser, and all together."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from tsd_jax.base.errors import multiples, not_weights, refuse
from tsd_jax.base.types import PromptForm
from tsd_jax.inference.prefill import prefill_tokens
from tsd_jax.inference.rollout import Sampler
from tsd_jax.learning.loss_terms import TERMS, LossTerm
from tsd_jax.models.lora import NO_ADAPTERS, LoraConfig
from tsd_jax.parallel.sharding import ONE_DEVICE, MeshConfig
from tsd_jax.rewards.reward import Abstained, marks
from tsd_jax.search.config import SearchConfig
from tsd_jax.tasks.task import Task

# Names of the weights of the terms that every loss has.
WEIGHTS = tuple(term.weight_name for term in TERMS)
_CLIPS = ("clip_low", "clip_high")


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights and forms of the terms of the loss."""

  policy: Literal["ppo", "cispo"] = "ppo"
  # tree: values of the forks; prefix: of whatever prefixes samples share.
  # group: GRPO's standard scores; centred: without the division (Dr. GRPO).
  advantage: Literal["tree", "prefix", "group", "centred", "gae"] = "tree"
  # Reward, added to the spread of a prompt's samples, by which their advantages
  # are divided: noise that is smaller than this is not blown up to size 1.
  advantage_epsilon: float = 1e-4
  advantage_clip: float = 0.0  # Largest size of an advantage; 0: any.
  policy_weight: float = 1.0
  clip_low: float = 0.2
  clip_high: float = 0.2
  # Cross-entropy on the best answers found, at the samples' temperature.
  champion_weight: float = 8.0
  champions: int = 1  # M, distinct answers a prompt, best first.
  # C, prompts whose champions an update distils at most, of those searched or
  # sampled: random ones that have a champion first.
  distilled_prompts: int = 448
  # Where they come from: the tree, or the policy's own samples (no search).
  champion_source: Literal["search", "samples"] = "search"
  # Which champions are distilled. correct: those that solve the task; better:
  # those whose reward beats that of the search model's greedy answer (the own
  # samples' mean) by a margin; quantile: the best of an iteration's. The last
  # two need no ground truth.
  champion_gate: Literal["correct", "better", "quantile"] = "correct"
  champion_margin: float = 0.0  # Reward, for "better".
  champion_quantile: float = 0.5  # Of rewards, for "quantile": above it.
  # KL to the improved move distributions, which are of temperature 1.
  soft_weight: float = 0.0
  soft_min_visits: int = 2
  # Unlikelihood of the moves that the tree may not make (`reward.forbidden`),
  # or that led to what a guard refused (`reward.guards`).
  aversion_weight: float = 0.0
  value_weight: float = 0.0  # V_pi.
  # V_search; None: 0.1 where the search values leaves by it, 0 elsewhere.
  success_weight: float | None = None
  kl_weight: float = 0.0  # KL to the reference, the run's first parameters.
  entropy_weight: float = 0.0
  # When to abstain, where the reward pays for it: then samples are made not to,
  # and the term weighs at each of their tokens whether to stop there.
  abstention_weight: float = 1.0
  abstention_entropy: float = 0.01  # Of stopping: keeps it from being never.
  abstention_patience: float = 0.05  # Reward that going on is worth beside.
  local_weight: float = 0.5  # Tree advantages: parent against root baseline.
  discount: float = 1.0
  gae_lambda: float = 0.95
  terms: tuple[LossTerm, ...] = ()  # Of your own; see `loss_terms`.

  @property
  def all_terms(self) -> tuple[LossTerm, ...]:
    """The terms of the loss, those of `terms` last."""
    return TERMS + self.terms

  @property
  def weights(self) -> dict[str, float]:
    """The terms' weights by their names."""
    own = {term.weight_name: term.weight for term in self.terms}
    return {name: getattr(self, name) or 0.0 for name in WEIGHTS} | own

  def active(self, reads: str) -> tuple[LossTerm, ...]:
    """The terms that read samples, or champions, and whose weight is not 0."""
    weights = self.weights
    return tuple(
      term
      for term in self.all_terms
      if term.reads == reads and weights[term.weight_name] > 0
    )

  @property
  def distils(self) -> bool:
    """Whether the loss reads champions."""
    return bool(self.active("champions"))

  @property
  def reads_reference(self) -> bool:
    """Whether a term reads the run's first model, whose forwards count."""
    return any(term.reads_reference for term in self.active("samples"))

  @property
  def reads_paths(self) -> bool:
    """Whether the loss reads what a tree offered on the way to a champion."""
    return self.soft_weight > 0 or self.aversion_weight > 0

  @property
  def trains_on_samples(self) -> bool:
    """Whether the loss reads the on-policy samples."""
    return bool(self.active("samples"))

  def __post_init__(self):
    """Refuses negative weights and impossible clips."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    names = [term.name for term in self.all_terms]
    if twice := {name for name in names if names.count(name) > 1}:
      yield (f"two terms of the loss are called {', '.join(sorted(twice))}")
    numbers = self.weights | {
      "champion_margin": self.champion_margin,
      "advantage_clip": self.advantage_clip,
      "abstention_entropy": self.abstention_entropy,
      "abstention_patience": self.abstention_patience,
    }
    yield from not_weights("loss", numbers)
    for name in ("discount", "gae_lambda", "local_weight"):
      if not 0 <= getattr(self, name) <= 1:
        yield (f"loss.{name}={getattr(self, name)} must lie in [0, 1]")
    if not 0 < self.advantage_epsilon < math.inf:
      yield (f"loss.advantage_epsilon={self.advantage_epsilon} must be above 0")
    if not 0 <= self.champion_quantile < 1:
      yield (
        f"loss.champion_quantile={self.champion_quantile} must lie in [0, 1)"
      )
    if self.champions < 1:
      yield (f"loss.champions={self.champions} must be at least 1")
    if not self.distils and not self.trains_on_samples:
      yield ("every weight of the loss is 0: set loss.policy_weight")
    if not 0 < self.clip_low < 1 or not 0 < self.clip_high < math.inf:
      yield (
        f"loss.clip_low={self.clip_low} must lie in (0, 1) and "
        f"loss.clip_high={self.clip_high} be positive"
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam over minibatches of whole prompts."""

  learning_rate: float = 3e-4
  linear_decay: bool = False  # Of it, to 0 after the last iteration.
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  max_grad_norm: float = 1.0
  epochs: int = 1
  minibatches: int = 8

  def rate_at(self, iteration: int, iterations: int) -> float:
    """Learning rate of an iteration, the first of which is 0.

    Args:
      iteration: its number.
      iterations: of the run.
    """
    left = 1.0 - iteration / iterations if self.linear_decay else 1.0
    return self.learning_rate * max(left, 0.0)

  def __post_init__(self):
    """Refuses impossible settings."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    for field in (
      "learning_rate",
      "eps",
      "max_grad_norm",
      "epochs",
      "minibatches",
    ):
      if not 0 < getattr(self, field) < math.inf:
        yield (
          f"optimizer.{field}={getattr(self, field)} must be positive, and "
          "finite"
        )
    for field in ("b1", "b2"):
      if not 0 <= getattr(self, field) < 1:
        yield (f"optimizer.{field}={getattr(self, field)} must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """Everything the compiled loop depends on."""

  rollout: Sampler
  search: SearchConfig
  loss: LossConfig
  optimizer: OptimizerConfig
  searches: bool  # Whether a tree is searched at all.
  refresh_every: int  # theta_s <- theta every so many iterations; 0: never.
  # Iterations in which the learning rate falls to 0; 0 where it stays.
  decay_over: int
  end_ids: tuple[int, ...]
  prompt_form: PromptForm = PromptForm()  # The task's.
  # What the reward's models do for one response, as tokens of the policy.
  reward_tokens: int = 0
  abstention: Abstained | None = None  # The reward's.
  lora: LoraConfig = NO_ADAPTERS
  mesh: MeshConfig = ONE_DEVICE

  def __post_init__(self):
    """Refuses settings that do not fit together."""
    refuse(self._violations())

  def _violations(self) -> Iterator[str]:
    if self.refresh_every < 0:
      yield (f"refresh_every={self.refresh_every} must be >= 0")
    for name, count in (
      ("rollout.prompts", self.rollout.prompts),
      ("rollout.trained_prompts", self.rollout.trained_prompts),
      ("loss.distilled_prompts", self.distilled_prompts),
    ):
      if count % self.optimizer.minibatches:
        yield (
          f"{name}={count} must be a multiple of "
          f"optimizer.minibatches={self.optimizer.minibatches}: use "
          + multiples(count, self.optimizer.minibatches)
        )
    if self.distilled_prompts > self.prompts:
      yield (
        f"loss.distilled_prompts={self.distilled_prompts} exceeds the "
        f"{self.prompts} prompts that are searched: rollout.prompts times "
        "search.width"
      )
    compares = self.loss.policy_weight > 0 and self.loss.advantage != "gae"
    if compares and self.rollout.group < 2:
      yield (
        f"loss.advantage={self.loss.advantage} compares the rows of a prompt, "
        f"of which there is {self.rollout.group}: set rollout.samples=2 or "
        "more (a baseline: a lower rollout.baseline_prompts)"
      )
    if self.loss.advantage != "tree" and self.rollout.forked:
      yield (
        f"loss.advantage={self.loss.advantage} knows no forks: set "
        "rollout.forks=0 or loss.advantage=tree"
      )
    if self.loss.advantage == "gae" and self.loss.value_weight == 0:
      yield (
        "loss.advantage=gae needs a trained value: set loss.value_weight > 0"
      )
    for name in self._path_terms:
      if not self.searches:
        yield (
          f"loss.{name} > 0 needs a search: use algorithm=tsd with "
          "loss.champion_source=search"
        )
    if self.answers and self.searches and self.rollout.choose == "uncertain":
      yield (
        "loss.abstention_weight > 0 asks of prompts drawn without regard to "
        "their difficulty whether to abstain: set rollout.choose=first"
      )
    if self.answers and self.trained_prompts < self.rollout.prompts:
      yield (
        "loss.abstention_weight > 0 reads prompts that nobody solves as well, "
        f"which rollout.trained_prompts={self.trained_prompts} leaves out: set "
        "rollout.trained_prompts=0"
      )
    drawn = self.search.step_tokens > 1 or self.search.lazy
    for name in self._path_terms:
      if drawn:
        yield (
          f"loss.{name} > 0 needs a node's likeliest tokens as its moves: "
          "set search.step_tokens=1 and search.rule.lazy=false, not "
          f"{self.search.step_tokens} and {self.search.lazy}"
        )
    if self.loss.distils and not self.searches:
      if self.loss.champions > self.rollout.group:
        yield (
          f"loss.champions={self.loss.champions} exceeds the "
          f"{self.rollout.group} samples that they are chosen from"
        )

  @property
  def _path_terms(self) -> list[str]:
    """Weights of the terms that read a tree's moves, where they are not 0."""
    names = ("soft_weight", "aversion_weight")
    return [name for name in names if getattr(self.loss, name) > 0]

  @property
  def never(self) -> tuple[int, ...]:
    """Tokens that searches and champions know nothing of: they answer."""
    return marks(self.abstention)

  @property
  def answers(self) -> bool:
    """Whether the policy's samples are made to answer as well."""
    return bool(self.never) and self.loss.abstention_weight > 0

  @property
  def prompts(self) -> int:
    """Q, prompts that an iteration reads."""
    return self.rollout.prompts * (self.search.width if self.searches else 1)

  @property
  def trained_prompts(self) -> int:
    """Sampled prompts whose samples an update reads."""
    return self.rollout.trained_prompts or self.rollout.prompts

  @property
  def distilled_prompts(self) -> int:
    """C, prompts whose champions an update reads."""
    if not self.loss.distils:
      return 0
    if self.searches:
      return self.loss.distilled_prompts
    return min(self.loss.distilled_prompts, self.rollout.prompts)

  def prompt_tokens(self, task: Task, prompts: int, calls: int = 1) -> int:
    """Tokens of prompts that are run in some calls of the model.

    What all prompts begin with counts once a call, on however many devices.
    """
    return prefill_tokens(prompts, task.prompt_length, self.prompt_form, calls)

  @property
  def search_calls(self) -> int:
    """Calls in which the searched prompts are run."""
    return -(-self.prompts // self.search.block(self.prompts))

  def update_tokens(self, task: Task) -> int:
    """Tokens that one epoch runs forward and backward."""
    total = 0
    if self.loss.trains_on_samples:
      total += self.sample_tokens(task)
    if self.loss.distils:
      total += self._part_tokens(
        task, self.distilled_prompts, self.loss.champions
      )
    return total

  def sample_tokens(self, task: Task) -> int:
    """Tokens of an epoch's samples."""
    return self._part_tokens(task, self.trained_prompts, self.rollout.group)

  def reference_tokens(self, task: Task) -> int:
    """Tokens that the reference model reads in an update, if a term asks it."""
    if not self.loss.reads_reference:
      return 0
    return self.optimizer.epochs * self.sample_tokens(task)

  def prompts_of(self, task: Task, tokens: int, rows: int) -> int:
    """How many prompts, of so many rows each, an epoch of some tokens reads.

    A multiple of `prompt_step`; each minibatch runs the common head once.
    """
    heads = self._part_tokens(task, 0, rows)
    prompt = self._part_tokens(task, 1, rows) - heads
    step = self.prompt_step
    return (tokens - heads) // prompt // step * step

  @property
  def prompt_step(self) -> int:
    """Prompts that give each minibatch one of every part of the mesh."""
    return self.optimizer.minibatches * self.mesh.batch_size

  def _part_tokens(self, task: Task, prompts: int, rows: int) -> int:
    calls = self.optimizer.minibatches
    responses = prompts * rows * (task.response_length - 1)
    return self.prompt_tokens(task, prompts, calls) + responses

  @property
  def hyper(self) -> dict[str, float]:
    """Scalars that are arguments of the compiled loop."""
    clips = {name: getattr(self.loss, name) for name in _CLIPS}
    return (
      self.loss.weights
      | clips
      | {
        "learning_rate": self.optimizer.learning_rate,
        "decay_over": self.decay_over,
      }
    )

  @property
  def static(self) -> "LearnerConfig":
    """What a program is compiled for: all but the values of `hyper`.

    A weight still says whether it is zero, because its term is then left out.
    """
    weights = {n: float(self.loss.weights[n] > 0) for n in WEIGHTS}
    terms = tuple(
      dataclasses.replace(term, weight=float(term.weight > 0))
      for term in self.loss.terms
    )
    clips = {n: getattr(LossConfig, n) for n in _CLIPS}
    return dataclasses.replace(
      self,
      decay_over=int(self.decay_over > 0),
      loss=dataclasses.replace(self.loss, terms=terms, **weights, **clips),
      optimizer=dataclasses.replace(
        self.optimizer, learning_rate=OptimizerConfig.learning_rate
      ),
    )
