"""Answers that admit not to know, and what they are worth."""

import dataclasses
import math

import jax.numpy as jnp

from tsd_jax.rewards.algebra import Combined
from tsd_jax.rewards.reward import Abstained, Reward, Score


@dataclasses.dataclass(frozen=True)
class Abstention(Combined):
  """Pays a right answer, and one that says "I don't know" more than a wrong.

    right, if the answer is correct;  worth, if it abstains;  wrong, otherwise

  A response that holds the mark abstains, whatever else it says: so it may try
  first, and then take back what it has tried.

  Attributes:
    reward: says what is correct.
    mark: the token that abstains, for symbol games `models.symbols.UNSURE`.
    worth: of abstaining.
    right: of a correct answer.
    wrong: of any other, one that is not finished among them.

  Raises:
    ValueError: values are out of order, or nobody knows what is correct.
  """

  reward: Reward
  mark: int
  worth: float = 0.5
  right: float = 1.0
  wrong: float = 0.0

  def __post_init__(self):
    """Refuses values that teach something else."""
    super().__post_init__()
    values = self.wrong, self.worth, self.right
    if not all(map(math.isfinite, values)) or not (
      self.wrong <= self.worth <= self.right and self.wrong < self.right
    ):
      raise ValueError(
        f"Abstention.wrong={self.wrong}, worth={self.worth} and right="
        f"{self.right} must be finite and in this order, right above wrong"
      )
    if self.mark < 0:
      raise ValueError(f"Abstention.mark={self.mark} must be a token's id")
    if not self.reward.knows_correct:
      raise ValueError(
        f"{type(self.reward).__name__} knows no correct answers: Abstention "
        "needs a reward that does"
      )

  @property
  def members(self) -> tuple[Reward, ...]:
    """What says what is correct."""
    return (self.reward,)

  @property
  def low(self) -> float:
    """A wrong answer's."""
    return self.wrong

  @property
  def high(self) -> float:
    """A right answer's."""
    return self.right

  @property
  def abstention(self) -> Abstained:
    """The mark and its worth."""
    return Abstained(self.mark, self.worth)

  def combine(self, scores):
    """Right or wrong, before anybody has looked for the mark."""
    correct_BG = scores[0].correct_X
    assert correct_BG is not None  # `__post_init__` and `check_score`.
    return jnp.where(correct_BG, self.right, self.wrong), {}

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Scores by the member, and pays who abstains."""
    score = super().__call__(params, prompts, tokens_BGT, mask_BGT)
    # Nothing stands behind the end.
    abstains_BG = self.abstention.said(jnp.where(mask_BGT, tokens_BGT, -1))
    assert score.correct_X is not None
    return Score(
      jnp.where(abstains_BG, self.worth, score.reward_X).astype(jnp.float32),
      score.correct_X & ~abstains_BG,
      {**score.parts, "abstains": abstains_BG.astype(jnp.float32)},
    )
