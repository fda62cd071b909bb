"""Rewards made of rewards: a sum, a product, a gate, an order, a clip.

Each is a reward like its members, which may be such rewards themselves. Ranges
follow by interval arithmetic, parameters and operations from the members'. What
every member says is a part of the score, and so is logged one by one, under the
name of its class.
"""

import abc
import collections
import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp

from tsd_jax.base.config_values import snake_case
from tsd_jax.base.types import Array
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.rewards.reward import Reward, Score, check_range, within_range

# Values that a lexicographic order tells apart. Float32 has 2**24 of them in
# [0, 1]; what is left absorbs the rounding of scales and sums around it.
RESOLUTION = 2**20


@dataclasses.dataclass(frozen=True)
class TaskReward(Reward):
  """Stands for the task's own reward, which `Experiment` puts in its place."""

  low = high = math.nan  # Known once it is bound.

  def bind(self, own: Reward, tokenizer: Tokenizer | None = None) -> Reward:
    """The task's own reward."""
    del tokenizer
    return own

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Is never called.

    Raises:
      ValueError: nothing has been put in its place.
    """
    raise ValueError(
      "TaskReward() stands for a task's own reward: give it to "
      "Experiment.reward, or call reward.bind(task.reward)"
    )


@dataclasses.dataclass(frozen=True)
class Combined(Reward):
  """A reward made of others, its members; the pattern for one of your own.

  Attributes:
    correct_by: which member says what is correct, by its place; by default the
      first that knows.

  Raises:
    ValueError: a member is no reward, or abstains, forbids or guards within
      what does not, or knows no correct answers though it is asked for them.
  """

  correct_by: int | None = dataclasses.field(default=None, kw_only=True)

  def __post_init__(self):
    """Refuses what are no rewards."""
    name, members = type(self).__name__, self.members
    if not isinstance(members, tuple) or not members:
      raise ValueError(f"{name} needs a tuple of rewards, got {members!r}")
    for member in members:
      if not isinstance(member, Reward):
        raise ValueError(f"{name} holds {member!r}, which is no reward")
      # Which tokens abstain or are forbidden is the whole reward's to say:
      # within a sum nobody would ask.
      for of in ("abstention", "forbidden", "guards"):
        if getattr(member, of) and not getattr(self, of):
          raise ValueError(
            f"{name} holds {type(member).__name__}, whose {of} nobody would "
            f"hear: put it outermost, around {name}"
          )
    by = self.correct_by
    if by is not None:
      if not 0 <= by < len(members) or not members[by].knows_correct:
        raise ValueError(
          f"{name}.correct_by={by}: no member there knows correct answers"
        )

  @property
  @abc.abstractmethod
  def members(self) -> tuple[Reward, ...]:
    """What it is made of."""

  @abc.abstractmethod
  def combine(
    self, scores: tuple[Score, ...]
  ) -> tuple[Array, Mapping[str, Array]]:
    """The reward, BG, and parts of its own, from the members' scores."""

  @property
  def knows_correct(self) -> bool:
    """Whether a member does."""
    return any(member.knows_correct for member in self.members)

  @property
  def judgements(self) -> int:
    """Of the member that judges most often."""
    return max(member.judgements for member in self.members)

  @property
  def judges_steps(self) -> bool:
    """Whether a member does."""
    return any(member.judges_steps for member in self.members)

  def progress(self, params, prompts, tokens_BT, mask_BT):
    """That of the first member that judges steps."""
    for member, own in zip(self.members, params, strict=True):
      if member.judges_steps:
        return member.progress(own, prompts, tokens_BT, mask_BT)
    return super().progress(params, prompts, tokens_BT, mask_BT)

  @property
  def disagreement(self) -> str | None:
    """The part of the first member that is an ensemble."""
    for name, member in zip(
      part_names(self.members), self.members, strict=True
    ):
      if member.disagreement is not None:
        return f"{name}.{member.disagreement}"
    return None

  def load(self) -> tuple:
    """The members' parameters, in their order."""
    return tuple(member.load() for member in self.members)

  def misreads(self, tokenizer: Tokenizer) -> str | None:
    """The first member that cannot read the policy's tokens."""
    return next(
      filter(None, (m.misreads(tokenizer) for m in self.members)), None
    )

  def flops(self, prompt_length: int, response_length: int) -> float:
    """The members' operations."""
    lengths = prompt_length, response_length
    return sum(member.flops(*lengths) for member in self.members)

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Scores by every member, and combines that."""
    inputs = prompts, tokens_BGT, mask_BGT
    scores = tuple(
      within_range(member, p, *inputs)
      for member, p in zip(self.members, params, strict=True)
    )
    reward_BG, parts = self.combine(scores)
    parts = dict(parts)
    for name, score in zip(part_names(self.members), scores, strict=True):
      parts[name] = score.reward_X
      parts |= {f"{name}.{inner}": x for inner, x in score.parts.items()}
    known = (s.correct_X for s in scores if s.correct_X is not None)
    if self.correct_by is not None:
      known = iter([scores[self.correct_by].correct_X])
    return Score(reward_BG, next(known, None), parts)


def part_names(members: tuple[Reward, ...]) -> tuple[str, ...]:
  """Names of members' parts: `length`; with more of a kind `length_1`, ..."""
  names = [
    snake_case(type(member).__name__.removesuffix("Reward") or "Reward")
    for member in members
  ]
  place = {name: iter(range(1, len(names) + 1)) for name in names}
  count = collections.Counter(names)
  return tuple(
    f"{name}_{next(place[name])}" if count[name] > 1 else name for name in names
  )


@dataclasses.dataclass(frozen=True)
class Sum(Combined):
  """A weighted sum.

  Attributes:
    rewards: what is added up.
    weights: one each, of any sign; () is 1 for all.

  Raises:
    ValueError: there are not as many weights as rewards, or one is not finite.
  """

  rewards: tuple[Reward, ...]
  weights: tuple[float, ...] = ()

  def __post_init__(self):
    """Refuses weights that do not fit."""
    super().__post_init__()
    if self.weights and len(self.weights) != len(self.rewards):
      raise ValueError(
        f"Sum of {len(self.rewards)} rewards has {len(self.weights)} weights"
      )
    if not all(map(math.isfinite, self.weights)):
      raise ValueError(f"Sum.weights={self.weights} must be finite")

  @property
  def members(self) -> tuple[Reward, ...]:
    """What is added up."""
    return self.rewards

  @property
  def _weighted(self) -> list[tuple[float, Reward]]:
    weights = self.weights or (1.0,) * len(self.rewards)
    return list(zip(weights, self.rewards, strict=True))

  @property
  def low(self) -> float:
    """The least sum."""
    return sum(min(w * r.low, w * r.high) for w, r in self._weighted)

  @property
  def high(self) -> float:
    """The greatest sum."""
    return sum(max(w * r.low, w * r.high) for w, r in self._weighted)

  def combine(self, scores):
    """Adds up."""
    pairs = zip(self._weighted, scores, strict=True)
    return sum(w * score.reward_X for (w, _), score in pairs), {}


@dataclasses.dataclass(frozen=True)
class Product(Combined):
  """A product, whatever the signs of its factors."""

  rewards: tuple[Reward, ...]

  @property
  def members(self) -> tuple[Reward, ...]:
    """The factors."""
    return self.rewards

  @property
  def _range(self) -> tuple[float, float]:
    low = high = 1.0
    for r in self.rewards:
      corners = [a * b for a in (low, high) for b in (r.low, r.high)]
      low, high = min(corners), max(corners)
    return low, high

  @property
  def low(self) -> float:
    """The least product."""
    return self._range[0]

  @property
  def high(self) -> float:
    """The greatest product."""
    return self._range[1]

  def combine(self, scores):
    """Multiplies."""
    return math.prod(score.reward_X for score in scores), {}


@dataclasses.dataclass(frozen=True)
class Gate(Combined):
  """A reward that counts only where a condition holds.

  Where it does not, the value is never above any that an open gate gives: a
  likeable wrong answer never beats a right one. The part `open` says where.

  Attributes:
    condition: opens the gate where the response is correct.
    reward: counts where it is open.
    closed: the value where it is not; the reward's least by default.
    threshold: opens the gate where the condition's reward reaches it instead;
      needed of a condition that knows no correct answers.

  Raises:
    ValueError: a closed gate would beat an open one, or nothing opens it.
  """

  condition: Reward
  reward: Reward
  closed: float | None = None
  threshold: float | None = None

  def __post_init__(self):
    """Refuses a gate that does not hold."""
    super().__post_init__()
    if self.closed is not None and self.closed > self.reward.low:
      raise ValueError(
        f"Gate.closed={self.closed} exceeds {self.reward.low}, the least that "
        f"{type(self.reward).__name__} gives where the gate is open"
      )
    if self.threshold is None and not self.condition.knows_correct:
      raise ValueError(
        f"{type(self.condition).__name__} knows no correct answers: set "
        "Gate.threshold, the reward from which on the gate is open"
      )

  @property
  def members(self) -> tuple[Reward, ...]:
    """The condition, and what counts behind it."""
    return self.condition, self.reward

  @property
  def low(self) -> float:
    """The value of a closed gate."""
    return self.reward.low if self.closed is None else self.closed

  @property
  def high(self) -> float:
    """The reward's greatest."""
    return self.reward.high

  def combine(self, scores):
    """Shuts off what the condition does not let through."""
    condition, reward = scores
    if self.threshold is None:
      open_BG = condition.correct_X
      assert open_BG is not None  # `__post_init__` and `check_score` saw to it.
    else:
      open_BG = condition.reward_X >= self.threshold
    parts = {"open": open_BG.astype(jnp.float32)}
    return jnp.where(open_BG, reward.reward_X, self.low), parts


@dataclasses.dataclass(frozen=True)
class Lexicographic(Combined):
  """Order by the first reward, ties by the second, and so on; from 0 to 1.

    level_i = round(u_i (L_i - 1)),  u_i the i-th reward from 0 to 1
    reward  = rank of (level_1, level_2, ...) / (L_1 L_2 ... - 1)

  Rewards that round to the same level are tied, whatever comes after. So it is
  exact for rewards that take at most L_i evenly spaced values, and cuts others
  into as many steps. All levels together are at most 2**20, so that float32
  tells every rank from the next wherever the reward is scaled on its way.

  Attributes:
    rewards: the first one decides first.
    levels: L, how many of each; () is the same number of all, as many as fit.

  Raises:
    ValueError: there are not as many levels as rewards, too many, or too few.
  """

  low, high = 0.0, 1.0

  rewards: tuple[Reward, ...]
  levels: tuple[int, ...] = ()

  def __post_init__(self):
    """Refuses levels that float32 cannot tell apart."""
    super().__post_init__()
    count = len(self.rewards)
    if self.levels and len(self.levels) != count:
      raise ValueError(
        f"Lexicographic of {count} rewards has {len(self.levels)} levels"
      )
    if min(self.all_levels) < 2 or math.prod(self.all_levels) > RESOLUTION:
      raise ValueError(
        f"Lexicographic.levels={self.all_levels}: each must be at least 2, and "
        f"their product at most {RESOLUTION}"
      )

  @property
  def members(self) -> tuple[Reward, ...]:
    """What decides, the first one first."""
    return self.rewards

  @property
  def all_levels(self) -> tuple[int, ...]:
    """How many levels each reward has."""
    count = len(self.rewards)
    if self.levels:
      return self.levels
    level = round(RESOLUTION ** (1 / count))
    return (level - (level**count > RESOLUTION),) * count

  def combine(self, scores):
    """Ranks the tuples of levels."""
    rank_BG = jnp.int32(0)
    for r, score, count in zip(
      self.rewards, scores, self.all_levels, strict=True
    ):
      check_range(r)
      unit_BG = (score.reward_X - r.low) / (r.high - r.low)
      level_BG = jnp.round(unit_BG * (count - 1)).astype(jnp.int32)
      rank_BG = rank_BG * count + level_BG
    return rank_BG / jnp.float32(math.prod(self.all_levels) - 1), {}


@dataclasses.dataclass(frozen=True)
class _Changed(Combined):
  """One reward with other values."""

  reward: Reward

  @property
  def members(self) -> tuple[Reward, ...]:
    """The one."""
    return (self.reward,)


@dataclasses.dataclass(frozen=True)
class Clip(_Changed):
  """A reward kept between two values."""

  low: float = 0.0
  high: float = 1.0

  def combine(self, scores):
    """Clips."""
    return jnp.clip(scores[0].reward_X, self.low, self.high), {}


@dataclasses.dataclass(frozen=True)
class Scale(_Changed):
  """A reward times a factor of any sign, plus an offset."""

  factor: float = 1.0
  offset: float = 0.0

  @property
  def _ends(self) -> list[float]:
    r = self.reward
    return [self.factor * x + self.offset for x in (r.low, r.high)]

  @property
  def low(self) -> float:
    """The least value."""
    return min(self._ends)

  @property
  def high(self) -> float:
    """The greatest value."""
    return max(self._ends)

  def combine(self, scores):
    """Scales."""
    return self.factor * scores[0].reward_X + self.offset, {}
