"""What no response may say, and what it costs to say it."""

import dataclasses

import jax.numpy as jnp

from tsd_jax.base.errors import UserError
from tsd_jax.models import phrases
from tsd_jax.models.phrases import Automaton, Phrases
from tsd_jax.models.tokenizer import Tokenizer
from tsd_jax.rewards.algebra import Combined
from tsd_jax.rewards.reward import Abstained, Reward, Score, check_worth


@dataclasses.dataclass(frozen=True)
class Constrained(Combined):
  """A reward of responses that say nothing forbidden.

    worth, if the response says a phrase;  reward, otherwise

  Who says it is never right, and `worth` is the least there is. A search reads
  the phrases from here and closes every move that would complete one; so this
  stands outermost. The part `violation` says where.

  Attributes:
    reward: of all that may be said.
    forbidden: the phrases.
    worth: of a violation; the reward's least by default.
    tokenizer: what the tokens say; `bind` puts the task's here.

  Raises:
    ValueError: a violation would be worth more than something else.
  """

  reward: Reward
  forbidden: Phrases
  worth: float | None = None
  tokenizer: Tokenizer | None = None

  def __post_init__(self):
    """Refuses a violation that pays."""
    super().__post_init__()
    check_worth(self, self.worth, of=self.reward)

  def bind(self, own: Reward, tokenizer: Tokenizer | None = None) -> Reward:
    """The task's own reward, and its tokenizer, in their places."""
    bound = super().bind(own, tokenizer)
    return dataclasses.replace(bound, tokenizer=self.tokenizer or tokenizer)

  @property
  def members(self) -> tuple[Reward, ...]:
    """What is constrained."""
    return (self.reward,)

  @property
  def low(self) -> float:
    """A violation's."""
    return self.reward.low if self.worth is None else self.worth

  @property
  def high(self) -> float:
    """The reward's greatest."""
    return self.reward.high

  @property
  def abstention(self) -> Abstained | None:
    """The reward's."""
    return self.reward.abstention

  def load(self) -> tuple:
    """The reward's parameters, and the tables that find the phrases.

    Raises:
      UserError: it was bound to no task.
    """
    if self.tokenizer is None:
      raise UserError(
        "Constrained.tokenizer=None: give the reward to Experiment.reward, or "
        "call reward.bind(task.reward, task.tokenizer)"
      )
    tables = phrases.compiled(self.forbidden, self.tokenizer)
    return *super().load(), tables

  def progress(self, params, prompts, tokens_BT, mask_BT):
    """The reward's; a violation is cut off before anybody asks."""
    *own, _ = params
    return super().progress(tuple(own), prompts, tokens_BT, mask_BT)

  def rules(self, params) -> Automaton:
    """The tables."""
    return params[-1]

  def combine(self, scores):
    """The reward, before anybody has looked for phrases."""
    return scores[0].reward_X, {}

  def __call__(self, params, prompts, tokens_BGT, mask_BGT) -> Score:
    """Scores by the reward what says nothing forbidden."""
    *own, rules = params
    score = super().__call__(tuple(own), prompts, tokens_BGT, mask_BGT)
    violates_BG = rules.said(tokens_BGT)
    correct_BG = score.correct_X
    if correct_BG is not None:
      correct_BG &= ~violates_BG
    return Score(
      jnp.where(violates_BG, self.low, score.reward_X).astype(jnp.float32),
      correct_BG,
      {**score.parts, "violation": violates_BG.astype(jnp.float32)},
    )
