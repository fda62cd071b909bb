"""A reward around another one, which it is like in all that it leaves alone."""

import dataclasses

from tsd_jax.rewards.reward import Reward


@dataclasses.dataclass(frozen=True)
class Around(Reward):
  """A reward around another, whose range and parameters it has.

  Attributes:
    reward: the other one.
  """

  reward: Reward

  def __post_init__(self):
    """Refuses what is no reward.

    Raises:
      ValueError: it is none.
    """
    if not isinstance(self.reward, Reward):
      name = type(self).__name__
      raise ValueError(f"{name} holds {self.reward!r}, which is no reward")

  @property
  def low(self) -> float:
    """The other's."""
    return self.reward.low

  @property
  def high(self) -> float:
    """The other's."""
    return self.reward.high

  @property
  def knows_correct(self) -> bool:
    """Whether the other does."""
    return self.reward.knows_correct

  @property
  def abstention(self):
    """The other's."""
    return self.reward.abstention

  @property
  def forbidden(self):
    """The other's."""
    return self.reward.forbidden

  @property
  def judgements(self) -> int:
    """The other's."""
    return self.reward.judgements

  @property
  def disagreement(self) -> str | None:
    """The other's."""
    return self.reward.disagreement

  @property
  def judges_steps(self) -> bool:
    """Whether the other does."""
    return self.reward.judges_steps

  @property
  def guards(self) -> bool:
    """Whether the other does."""
    return self.reward.guards

  def passes(self, params, prompts, tokens_BGT, mask_BGT):
    """What the other lets pass."""
    return self.reward.passes(params, prompts, tokens_BGT, mask_BGT)

  def unguarded(self, params):
    """This around what the other is without its guard."""
    reward, own = self.reward.unguarded(params)
    return dataclasses.replace(self, reward=reward), own

  def progress(self, params, prompts, tokens_BT, mask_BT):
    """The other's."""
    return self.reward.progress(params, prompts, tokens_BT, mask_BT)

  def rules(self, params):
    """The other's."""
    return self.reward.rules(params)

  def misreads(self, tokenizer):
    """The other's."""
    return self.reward.misreads(tokenizer)

  def load(self):
    """The other's parameters."""
    return self.reward.load()

  def flops(self, prompt_length: int, response_length: int) -> float:
    """The other's operations."""
    return self.reward.flops(prompt_length, response_length)
