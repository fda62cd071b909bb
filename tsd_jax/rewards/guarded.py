"""A judge of what may be said, which a search asks as it goes along."""

import dataclasses
import math

import jax.numpy as jnp

from tsd_jax.rewards.around import Around
from tsd_jax.rewards.reward import (
  Reward,
  Score,
  check_range,
  check_worth,
  within_range,
)


@dataclasses.dataclass(frozen=True)
class Guarded(Around):
  """A reward of responses that a judge lets pass.

    worth, if judge(y) < threshold;   reward(y), otherwise

  A response that is refused is never right, and `worth` is the least there is.
  A search asks the judge of every node, after each move: a path that is refused
  ends there with the least reward, and its siblings go on. So this stands
  outermost, as `constrained.Constrained` does, which it may hold. The part
  `refused` says where, `judge` by how much.

  Attributes:
    reward: of all that passes.
    judge: any reward, such as a classifier on the host
      (`classifier.Classifier`) or a reward model; of beginnings it sees the
      mask of their tokens.
    threshold: what it must say at least.
    worth: of what is refused; the reward's least by default.

  Raises:
    ValueError: nothing or everything would pass, or what is refused would be
      worth more than something else.
  """

  judge: Reward
  threshold: float = 0.5
  worth: float | None = None

  def __post_init__(self):
    """Refuses a judge that decides nothing, and a refusal that pays."""
    super().__post_init__()
    if not isinstance(self.judge, Reward):
      raise ValueError(f"Guarded.judge={self.judge!r} is no reward")
    if self.reward.guards or self.judge.guards:
      raise ValueError(
        "Guarded holds a Guarded, whose judge nobody would hear: join the "
        "judges in one reward, such as a Product"
      )
    name, low, high = type(self.judge).__name__, self.judge.low, self.judge.high
    if math.isnan(low) or math.isnan(high):
      return  # Of `TaskReward()`: known once it is bound.
    check_range(self.judge)
    if not low < self.threshold <= high:
      raise ValueError(
        f"Guarded.threshold={self.threshold} must be above {low}, the least "
        f"that {name} gives, and at most {high}, the most"
      )
    check_worth(self, self.worth, of=self.reward)

  @property
  def guards(self) -> bool:
    """Whatever the reward does."""
    return True

  @property
  def low(self) -> float:
    """Of what is refused."""
    return self.reward.low if self.worth is None else self.worth

  def load(self) -> tuple:
    """The parameters of both."""
    return self.reward.load(), self.judge.load()

  def rules(self, params):
    """The reward's."""
    return self.reward.rules(params[0] if params else ())

  def progress(self, params, prompts, tokens_BT, mask_BT):
    """The reward's."""
    return self.reward.progress(params[0], prompts, tokens_BT, mask_BT)

  def misreads(self, tokenizer) -> str | None:
    """The first that cannot read the policy's tokens."""
    return super().misreads(tokenizer) or self.judge.misreads(tokenizer)

  def flops(self, prompt_length: int, response_length: int) -> float:
    """Of both."""
    lengths = prompt_length, response_length
    return self.reward.flops(*lengths) + self.judge.flops(*lengths)

  def unguarded(self, params) -> tuple[Reward, tuple]:
    """The reward."""
    return self.reward, params[0]

  def passes(self, params, prompts, tokens_BGT, mask_BGT):
    """What the judge does not refuse."""
    return ~self._judged(params, prompts, tokens_BGT, mask_BGT)[0]

  def _judged(self, params, prompts, tokens_BGT, mask_BGT):
    """What is refused, and what the judge says, BG; for NaN the least."""
    score = within_range(self.judge, params[1], prompts, tokens_BGT, mask_BGT)
    judge_BG = jnp.where(
      jnp.isnan(score.reward_X), self.judge.low, score.reward_X
    )
    return judge_BG < self.threshold, judge_BG

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Scores by the reward what passes."""
    score = within_range(self.reward, params[0], prompts, tokens_BGT, mask_BGT)
    refused_BG, judge_BG = self._judged(params, prompts, tokens_BGT, mask_BGT)
    correct_BG = score.correct_X
    if correct_BG is not None:
      correct_BG &= ~refused_BG
    parts = {"refused": refused_BG.astype(jnp.float32), "judge": judge_BG}
    return Score(
      jnp.where(refused_BG, self.low, score.reward_X).astype(jnp.float32),
      correct_BG,
      {**score.parts, **parts},
    )
