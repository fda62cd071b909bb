"""Verifiers that err, and verifiers that are asked again."""

import dataclasses

import jax
import jax.numpy as jnp

from tsd_jax.base.hashing import hashed
from tsd_jax.base.types import Array
from tsd_jax.rewards.around import Around
from tsd_jax.rewards.reward import Reward, Score


@dataclasses.dataclass(frozen=True)
class _Verifying(Around):
  """A reward around one that knows what is correct."""

  def __post_init__(self):
    """Refuses what knows nothing that could be mistaken.

    Raises:
      ValueError: it is no reward, or knows no correct answers.
    """
    super().__post_init__()
    if not self.reward.knows_correct:
      raise ValueError(
        f"{type(self.reward).__name__} knows no correct answers: "
        f"{type(self).__name__} needs a reward that does"
      )


@dataclasses.dataclass(frozen=True)
class Noisy(_Verifying):
  """A verifier that errs, for trials of what learns from one.

  A wrong response is accepted with probability `accept` and then has the
  highest reward; a right one is rejected with probability `reject` and then has
  the lowest. Held-out answers are judged by the reward inside (`truth`).

  Attributes:
    reward: the verifier that does not err.
    accept: how often it accepts a wrong response.
    reject: how often it rejects a right one.
    above: wrong responses that are worth no more than this are never accepted,
      as those that are not even legal.
    fixed: err on the same responses always, as a rule with a gap does;
      otherwise anew each of the G times that a response is judged beside
      itself (`Confirmed`), as a model does that is sampled.
    seed: of the errors.

  Raises:
    ValueError: a probability is none.
  """

  accept: float = 0.0
  reject: float = 0.0
  above: float = -float("inf")
  fixed: bool = True
  seed: int = 0

  def __post_init__(self):
    """Refuses what are no probabilities."""
    super().__post_init__()
    for name in ("accept", "reject"):
      if not 0 <= (rate := getattr(self, name)) < 1:
        raise ValueError(f"Noisy.{name}={rate} must lie in [0, 1)")

  def truth(self) -> Reward:
    """The verifier that does not err."""
    return self.reward.truth()

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Judges, and errs where a hash of the response falls below its rate."""
    score = self.reward(params, prompts, tokens_BGT, mask_BGT)
    right_BG = score.correct_X
    assert right_BG is not None  # `__post_init__`.
    responses = prompts.tokens_BP, tokens_BGT, mask_BGT
    chance_BG = _uniform(self.seed, *responses, fixed=self.fixed)
    rate_BG = jnp.where(
      right_BG,
      self.reject,
      jnp.where(score.reward_X > self.above, self.accept, 0.0),
    )
    errs_BG = chance_BG < rate_BG
    mistaken_BG = jnp.where(right_BG, self.low, self.high)
    return Score(
      jnp.where(errs_BG, mistaken_BG, score.reward_X).astype(jnp.float32),
      right_BG ^ errs_BG,
      {
        **score.parts,
        "right": right_BG.astype(jnp.float32),
        "mistaken": errs_BG.astype(jnp.float32),
      },
    )


@dataclasses.dataclass(frozen=True)
class Jittered(Around):
  """A reward that is never quite right, for trials of what learns from one.

  Each response's reward is off by up to `size`, and now and then, with
  probability `outliers`, by `outlier` up or down. What is correct is known as
  before, and held-out answers are judged by the reward inside (`truth`).

  Attributes:
    reward: the one that is right.
    size: largest error of most responses, uniform; in units of the reward.
    outliers: how often a response is an outlier.
    outlier: the error of one.
    seed: of the errors, which are a function of prompt and response.

  Raises:
    ValueError: a size is negative, or the probability is none.
  """

  size: float = 0.0
  outliers: float = 0.0
  outlier: float = 0.0
  seed: int = 0

  def __post_init__(self):
    """Refuses what is no size or no probability."""
    super().__post_init__()
    for name in ("size", "outlier"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"Jittered.{name}={getattr(self, name)} must not be negative"
        )
    if not 0 <= self.outliers < 1:
      raise ValueError(f"Jittered.outliers={self.outliers} must lie in [0, 1)")

  @property
  def low(self) -> float:
    """The other's, less the largest error."""
    return self.reward.low - self._most

  @property
  def high(self) -> float:
    """The other's, and the largest error."""
    return self.reward.high + self._most

  @property
  def _most(self) -> float:
    return max(self.size, self.outlier if self.outliers else 0.0)

  def truth(self) -> Reward:
    """The reward without errors."""
    return self.reward.truth()

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Adds the errors."""
    score = self.reward(params, prompts, tokens_BGT, mask_BGT)
    responses = prompts.tokens_BP, tokens_BGT, mask_BGT
    # Three numbers a response, each of a seed of its own.
    size_BG, chance_BG, sign_BG = (
      _uniform(3 * self.seed + i, *responses) for i in range(3)
    )
    error_BG = jnp.where(
      chance_BG < self.outliers,
      jnp.where(sign_BG < 0.5, -self.outlier, self.outlier),
      self.size * (2 * size_BG - 1),
    )
    parts = {**score.parts, "exact": score.reward_X}
    return Score(score.reward_X + error_BG, score.correct_X, parts)


def _uniform(
  seed: int, prompt_BP: Array, tokens_BGT, mask_BGT, *, fixed: bool = True
) -> Array:
  """A number in [0, 1) of each response: a hash of all that it depends on."""
  B, G, _ = tokens_BGT.shape
  word_BGT = jnp.where(mask_BGT, tokens_BGT, -1)
  prompt_BGP = jnp.broadcast_to(prompt_BP[:, None], (B, G, prompt_BP.shape[1]))
  place_G = jnp.zeros(G, jnp.int32) if fixed else jnp.arange(G)
  place_BG1 = jnp.broadcast_to(place_G[:, None], (B, G, 1))
  seed_BG1 = jnp.full((B, G, 1), seed)
  words = [seed_BG1, place_BG1, prompt_BGP, word_BGT]
  hash_BG = hashed(jnp.concatenate(words, axis=-1))
  # The upper 24 bits: as many as a float32 tells apart.
  return (hash_BG >> 8).astype(jnp.float32) / 2**24


@dataclasses.dataclass(frozen=True)
class Confirmed(_Verifying):
  """Asks a verifier several times, and believes what it says often enough.

  A response is correct if `least` of `calls` judgements say so; it then has the
  highest of their rewards, otherwise the lowest. A verifier that accepts a
  wrong response once in seven times, each time anew, accepts it three times
  running once in three hundred: a tree, which looks for whatever is accepted,
  needs that more than samples do.

  Attributes:
    reward: the verifier.
    calls: judgements of a response; each is in the ledger.
    least: of them that must say that it is correct; all, where None.

  Raises:
    ValueError: there is no judgement, or more are needed than are made.
  """

  calls: int = 3
  least: int | None = None

  def __post_init__(self):
    """Refuses counts that nothing can reach."""
    super().__post_init__()
    if self.calls < 1:
      raise ValueError(f"Confirmed.calls={self.calls} must be at least 1")
    if not 1 <= self._least <= self.calls:
      raise ValueError(
        f"Confirmed.least={self.least} must lie in [1, calls={self.calls}]"
      )

  @property
  def _least(self) -> int:
    return self.calls if self.least is None else self.least

  @property
  def judgements(self) -> int:
    """All calls of the verifier for one response."""
    return self.calls * super().judgements

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Judges every response `calls` times beside itself."""
    repeated = (
      jnp.repeat(a, self.calls, axis=1) for a in (tokens_BGT, mask_BGT)
    )
    score = self.reward(params, prompts, *repeated)

    def of_calls(a):
      return a.reshape(*tokens_BGT.shape[:2], self.calls)

    reward_BGK, correct_BGK, parts = jax.tree.map(of_calls, tuple(score))
    correct_BG = jnp.sum(correct_BGK, axis=-1) >= self._least
    return Score(
      jnp.where(correct_BG, reward_BGK.max(axis=-1), reward_BGK.min(axis=-1)),
      correct_BG,
      {name: part.mean(axis=-1) for name, part in parts.items()},
    )
